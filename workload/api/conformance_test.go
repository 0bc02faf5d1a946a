package api_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

var (
	portal    = entry("portal", "unix.uid", "1000")
	portalExe = entry("portal-exe", "unix.uid", "1000", "exe.path", "/usr/bin/portal")
	both      = []*workload.Entry{portal, portalExe}
)

func hinted(e *workload.Entry, hint string) *workload.Entry {
	c := *e
	c.Hint = hint
	return &c
}

// methods is every method of the endpoint, each tried once: the first message or the end of the call.
var methods = map[string]func(context.Context, *grpc.ClientConn) error{
	"FetchX509SVID": func(ctx context.Context, c *grpc.ClientConn) error {
		return first(spiffe.NewSpiffeWorkloadAPIClient(c).FetchX509SVID(ctx, &spiffe.X509SVIDRequest{}))
	},
	"FetchX509Bundles": func(ctx context.Context, c *grpc.ClientConn) error {
		return first(spiffe.NewSpiffeWorkloadAPIClient(c).FetchX509Bundles(ctx, &spiffe.X509BundlesRequest{}))
	},
	"FetchJWTSVID": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := spiffe.NewSpiffeWorkloadAPIClient(c).FetchJWTSVID(ctx, &spiffe.JWTSVIDRequest{Audience: []string{"a"}})
		return err
	},
	"FetchJWTBundles": func(ctx context.Context, c *grpc.ClientConn) error {
		return first(spiffe.NewSpiffeWorkloadAPIClient(c).FetchJWTBundles(ctx, &spiffe.JWTBundlesRequest{}))
	},
	"ValidateJWTSVID": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := spiffe.NewSpiffeWorkloadAPIClient(c).ValidateJWTSVID(ctx, &spiffe.ValidateJWTSVIDRequest{Audience: "a", Svid: "b"})
		return err
	},
	"FetchWITSVID": func(ctx context.Context, c *grpc.ClientConn) error {
		return first(spiffe.NewSpiffeWorkloadAPIClient(c).FetchWITSVID(ctx, &spiffe.WITSVIDRequest{}))
	},
	"FetchWITBundles": func(ctx context.Context, c *grpc.ClientConn) error {
		return first(spiffe.NewSpiffeWorkloadAPIClient(c).FetchWITBundles(ctx, &spiffe.WITBundlesRequest{}))
	},
	"reflection v1": func(ctx context.Context, c *grpc.ClientConn) error {
		s, err := grpc_reflection_v1.NewServerReflectionClient(c).ServerReflectionInfo(ctx)
		if err == nil {
			_ = s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
		}
		return first(s, err)
	},
	"reflection v1alpha": func(ctx context.Context, c *grpc.ClientConn) error {
		s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
		if err != nil {
			return err
		}
		// The older edition has the same messages as v1.
		_ = s.SendMsg(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
		return s.RecvMsg(&grpc_reflection_v1.ServerReflectionResponse{})
	},
	"health Check": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	},
	"health Watch": func(ctx context.Context, c *grpc.ClientConn) error {
		return first(grpc_health_v1.NewHealthClient(c).Watch(ctx, &grpc_health_v1.HealthCheckRequest{}))
	},
	"unknown service": func(ctx context.Context, c *grpc.ClientConn) error {
		return c.Invoke(ctx, "/a.B/C", &spiffe.X509SVIDRequest{}, &spiffe.X509SVIDResponse{})
	},
	"unknown method": func(ctx context.Context, c *grpc.ClientConn) error {
		return c.Invoke(ctx, "/SpiffeWorkloadAPI/Extra", &spiffe.X509SVIDRequest{}, &spiffe.X509SVIDResponse{})
	},
}

// first is the first message's fate. A Send that failed before is told by it.
func first[M any](s interface{ Recv() (M, error) }, err error) error {
	if err == nil {
		_, err = s.Recv()
	}
	return err
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code %s, want %s: %v", got, want, err)
	}
}

func TestWEP3SecurityHeader(t *testing.T) {
	b := serve(t, both)
	c := b.dial()
	for name, header := range map[string]metadata.MD{
		"absent":        {},
		"capital value": metadata.Pairs("workload.spiffe.io", "True"),
		"all capitals":  metadata.Pairs("workload.spiffe.io", "TRUE"),
		"empty":         metadata.Pairs("workload.spiffe.io", ""),
		"one":           metadata.Pairs("workload.spiffe.io", "1"),
		"false":         metadata.Pairs("workload.spiffe.io", "false"),
		"list":          metadata.Pairs("workload.spiffe.io", "true,true"),
		"ambiguous":     metadata.Pairs("workload.spiffe.io", "true", "workload.spiffe.io", "false"),
		"another key":   metadata.Pairs("broker.spiffe.io", "true"),
	} {
		for method, call := range methods {
			t.Run(name+"/"+method, func(t *testing.T) {
				ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(b.ctx(), header))
				defer cancel()
				wantCode(t, call(ctx, c), codes.InvalidArgument) // WEP §6
			})
		}
	}
	for method, want := range map[string]codes.Code{
		"FetchX509SVID": codes.OK, "FetchX509Bundles": codes.OK, "reflection v1": codes.OK, "reflection v1alpha": codes.OK,
		"health Check": codes.OK, "health Watch": codes.OK, "unknown service": codes.Unimplemented, "unknown method": codes.Unimplemented,
	} {
		t.Run("true/"+method, func(t *testing.T) {
			ctx, cancel := context.WithCancel(b.headed())
			defer cancel()
			wantCode(t, methods[method](ctx, c), want)
		})
	}
}

func TestWEP6Unavailable(t *testing.T) {
	b := serve(t, both)
	t.Run("initialising", func(t *testing.T) {
		starting := serve(t, both, func(_ *bench, o *api.Options) { o.Watcher = neverAsked{t} }, notReady)
		wantCode(t, methods["FetchX509SVID"](starting.headed(), starting.dial()), codes.Unavailable)
		wantCode(t, methods["FetchX509SVID"](starting.ctx(), starting.dial()), codes.InvalidArgument)
	})
	t.Run("issuer away", func(t *testing.T) {
		b.authority.set(errors.New("away"))
		defer b.authority.set(nil)
		err := methods["FetchX509SVID"](b.headed(), b.dial())
		wantCode(t, err, codes.Unavailable)
		if strings.Contains(err.Error(), "away") || strings.Contains(err.Error(), "portal") {
			t.Errorf("tells too much: %v", err)
		}
	})
	t.Run("shutting down", func(t *testing.T) {
		b := serve(t, both)
		stream, err := b.raw().FetchX509Bundles(b.headed(), &spiffe.X509BundlesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		health, err := grpc_health_v1.NewHealthClient(b.dial()).Watch(b.headed(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		receive(t, stream)
		receive(t, health)
		b.shutdown()
		err = first(stream, nil)
		wantCode(t, err, codes.Unavailable)
		if !strings.Contains(err.Error(), "shutting down") { // the server's word, not a cut connection
			t.Error(err)
		}
		for err = nil; err == nil; {
			_, err = health.Recv() // NOT_SERVING comes first
		}
		wantCode(t, err, codes.Unavailable)
	})
}

func receive[M any](t *testing.T, s interface{ Recv() (M, error) }) M {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWEP6PermissionDenied(t *testing.T) {
	for _, method := range []string{"FetchX509SVID", "FetchX509Bundles"} {
		b := serve(t, []*workload.Entry{entry("ehr", "unix.uid", "1000", "exe.path", "/usr/bin/ehr")})
		t.Run("no identity/"+method, func(t *testing.T) {
			err := methods[method](b.headed(), b.dial())
			wantCode(t, err, codes.PermissionDenied)
			for _, own := range []string{"unix.uid: 1000", "exe.path: /usr/bin/portal", "reference 0"} {
				if !strings.Contains(err.Error(), own) {
					t.Errorf("%q does not say %q", err, own)
				}
			}
			if strings.Contains(err.Error(), "ehr") {
				t.Errorf("%q names an entry", err)
			}
		})
	}
	b := serve(t, both)
	for _, tc := range []struct {
		name string
		end  func()
	}{
		{"redacted mid-stream", func() { b.load() }},
		{"process exited", func() { b.peer().end(attest.ErrExited) }},
		{"process replaced its program", func() { b.peer().end(attest.ErrReplaced) }},
		{"process changed its user", func() { b.peer().end(attest.ErrMismatch) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.load(both...)
			stream, err := b.raw().FetchX509SVID(b.headed(), &spiffe.X509SVIDRequest{})
			if err != nil {
				t.Fatal(err)
			}
			receive(t, stream)
			tc.end()
			wantCode(t, first(stream, nil), codes.PermissionDenied) // WAPI §5.2.1
		})
	}
}

func TestWEP7Reflection(t *testing.T) {
	b := serve(t, both)
	s, err := grpc_reflection_v1.NewServerReflectionClient(b.dial()).ServerReflectionInfo(b.headed())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, service := range receive(t, s).GetListServicesResponse().GetService() {
		got = append(got, service.GetName())
	}
	want := []string{"SpiffeWorkloadAPI", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// WAPI §2: the Workload API itself has what the standard defines, and nothing else.
	if n := len(spiffe.SpiffeWorkloadAPI_ServiceDesc.Methods) + len(spiffe.SpiffeWorkloadAPI_ServiceDesc.Streams); n != 7 {
		t.Errorf("%d methods", n)
	}
	if err := s.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
}

func TestWAPI7DisabledProfiles(t *testing.T) {
	b := serve(t, both)
	c := b.dial()
	for _, method := range []string{"FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID", "FetchWITSVID", "FetchWITBundles"} {
		wantCode(t, methods[method](b.headed(), c), codes.Unimplemented)
	}
	client := b.client()
	_, err := client.FetchJWTSVID(b.ctx(), jwtsvid.Params{Audience: "a"})
	wantCode(t, err, codes.Unimplemented)
	wantCode(t, client.WatchWITSVIDs(b.ctx(), silence{}, ""), codes.Unimplemented)
}

func TestWAPI4_3FullStateWithoutDelayAndOnChange(t *testing.T) {
	b := serve(t, both)
	var stream spiffe.SpiffeWorkloadAPI_FetchX509SVIDClient
	var one *spiffe.X509SVIDResponse
	withoutDelay(t, "the first message", func() {
		var err error
		if stream, err = b.raw().FetchX509SVID(b.headed(), &spiffe.X509SVIDRequest{}); err != nil {
			t.Fatal(err)
		}
		one = receive(t, stream)
	}, func() {})
	_, more := b.authority.ca()
	b.authority.publish(b.authority.root, more)
	two := receive(t, stream)
	if len(two.Svids) != 2 || len(one.Svids) != 2 {
		t.Fatalf("%d and then %d identities", len(one.Svids), len(two.Svids))
	}
	for i, s := range two.Svids {
		if !bytes.Equal(s.X509Svid, one.Svids[i].X509Svid) || !bytes.Equal(s.X509SvidKey, one.Svids[i].X509SvidKey) {
			t.Error("a new bundle changed an SVID")
		}
		if !bytes.Equal(s.Bundle, slices.Concat(b.authority.root.Raw, more.Raw)) {
			t.Error("the message does not hold the whole bundle")
		}
	}
	withoutDelay(t, "the edit", func() {
		b.load(portal)
		if three := receive(t, stream); len(three.Svids) != 1 || three.Svids[0].SpiffeId != portal.ID.String() {
			t.Errorf("after the edit: %v", three.Svids)
		}
	}, func() {
		b.load(both...)
		receive(t, stream)
	})
}

// withoutDelay sees that something is done at once: in one of a few tries, because the machine may be busy with other things.
func withoutDelay(t *testing.T, what string, do, undo func()) {
	t.Helper()
	for try := 1; ; try++ {
		start := time.Now()
		do()
		took := time.Since(start)
		if took <= 2*time.Second {
			return
		}
		if try == 5 {
			t.Fatalf("%s took %v", what, took)
		}
		undo()
	}
}

func TestWAPI5_1X509SVID(t *testing.T) {
	b := serve(t, both)
	stream, err := b.raw().FetchX509SVID(b.headed(), &spiffe.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r := receive(t, stream)
	var ids []string
	for _, s := range r.Svids {
		ids = append(ids, s.SpiffeId)
		chain, err := x509.ParseCertificates(s.X509Svid) // DER, not PEM, leaf first
		if err != nil {
			t.Fatal(err)
		}
		id, err := x509svid.IDFromCert(chain[0])
		if err != nil || id.String() != s.SpiffeId || chain[0].IsCA {
			t.Errorf("the leaf is %v (%v) under %s", id, err, s.SpiffeId)
		}
		if _, err := x509.ParsePKCS8PrivateKey(s.X509SvidKey); err != nil { // unencrypted
			t.Error(err)
		}
		if !bytes.Equal(s.Bundle, b.authority.root.Raw) {
			t.Error("the bundle is not the trust domain's")
		}
		if _, err := x509svid.ParseRaw(s.X509Svid, s.X509SvidKey); err != nil {
			t.Error(err)
		}
	}
	// WAPI §8: the default identity, the more specific one here, is the first.
	if diff := cmp.Diff([]string{"spiffe://clinic.test/portal-exe", "spiffe://clinic.test/portal"}, ids); diff != "" {
		t.Error(diff)
	}
	if len(r.FederatedBundles)+len(r.Crl) != 0 {
		t.Error("bundles or CRLs out of nowhere")
	}
}

func TestWAPI5_2_1HintsAreUnique(t *testing.T) {
	third := entry("third", "unix.uid", "1000")
	b := serve(t, []*workload.Entry{hinted(portal, "internal"), hinted(portalExe, "internal"), hinted(third, "external")})
	svids, err := b.client().FetchX509SVIDs(b.ctx())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range svids { // go-spiffe would drop a second identity under the same hint
		got = append(got, s.ID.Path()+" "+s.Hint)
	}
	if diff := cmp.Diff([]string{"/portal-exe internal", "/portal ", "/third external"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWAPI5_2_2Bundles(t *testing.T) {
	b := serve(t, both)
	stream, err := b.raw().FetchX509Bundles(b.headed(), &spiffe.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"spiffe://clinic.test": b.authority.root.Raw}
	if diff := cmp.Diff(want, receive(t, stream).Bundles); diff != "" {
		t.Error(diff)
	}
	_, more := b.authority.ca()
	b.authority.publish(more)
	want["spiffe://clinic.test"] = more.Raw
	if diff := cmp.Diff(want, receive(t, stream).Bundles); diff != "" {
		t.Error(diff)
	}
}

func TestGoSPIFFE(t *testing.T) {
	b := serve(t, both)
	client := b.client()
	svid, err := client.FetchX509SVID(b.ctx())
	if err != nil || svid.ID != portalExe.ID {
		t.Fatalf("%v, %v", svid, err)
	}
	bundles, err := client.FetchX509Bundles(b.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(svid.Certificates, bundles); err != nil || id != svid.ID {
		t.Errorf("%v, %v", id, err)
	}
	source, err := workloadapi.NewX509Source(b.ctx(), workloadapi.WithClient(client))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	_, more := b.authority.ca()
	b.authority.publish(b.authority.root, more)
	if err := source.WaitUntilUpdated(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if x, err := source.GetX509BundleForTrustDomain(clinic); err != nil || len(x.X509Authorities()) != 2 {
		t.Errorf("%v, %v", x, err)
	}
	if _, err := source.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.test")); err == nil {
		t.Error("a bundle of another trust domain")
	}
}

func notReady(b *bench, _ *api.Options) { b.starting = true }

// silence watches WIT-SVIDs that never come.
type silence struct{}

func (silence) OnWITSVIDsUpdate([]*witsvid.SVID) {}
func (silence) OnWITSVIDsWatchError(error)       {}

// neverAsked fails the test when a call reaches it.
type neverAsked struct{ t *testing.T }

func (n neverAsked) Watch(context.Context, workload.Process, workload.Want, func(workload.Update) error) error {
	n.t.Error("a call came through")
	return context.Canceled
}
