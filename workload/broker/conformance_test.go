package broker_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// The rows of the two standards, each a case named by its section: BE is the SPIFFE Broker Endpoint, BA the Broker API.
func TestStandard(t *testing.T) {
	for _, row := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"BE 3 without the header every request is InvalidArgument", testHeader},
		{"BE 5 a process that is not on the list is PermissionDenied", testStranger},
		{"BE 6 Unavailable while initializing", testStarting},
		{"BE 6 Unavailable while stopping", testStopping},
		{"BE 7 reflection", testReflection},
		{"BA 1 the JWT profile is off", testJWT},
		{"BA 3.1.1 4.8 a reference that is refused is InvalidArgument", testRefusedReferences},
		{"BA 4.4 the full state at once, and again on change", testFullState},
		{"BA 4.8 a process that is not there is NotFound", testNotFound},
		{"BA 4.8 a process without an entry is PermissionDenied", testNotEntitled},
		{"BA 4.9 nothing after the process has exited", testExit},
		{"BA 5.2.1 each identity, its key and its bundle", testSVIDs},
		{"BA 5.2.1 hints are unique", testHints},
		{"BA 5.2.2 the bundle of the own trust domain", testBundles},
		{"BA 5.3 the default identity is first", testDefault},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.test(t, serve(t, []*workload.Entry{portal(), own(lent("inner", "unix.uid", "1000", "exe.path", "/usr/bin/inner"))}))
		})
	}
}

func testHeader(t *testing.T, b *bench) {
	_, r := b.run(1)
	for name, ctx := range map[string]context.Context{
		"none":           b.ctx(),
		"upper case":     metadata.AppendToOutgoingContext(b.ctx(), "broker.spiffe.io", "True"),
		"another value":  metadata.AppendToOutgoingContext(b.ctx(), "broker.spiffe.io", "1"),
		"twice":          metadata.AppendToOutgoingContext(b.ctx(), "broker.spiffe.io", "true", "broker.spiffe.io", "true"),
		"the workload's": metadata.AppendToOutgoingContext(b.ctx(), "workload.spiffe.io", "true"),
	} {
		c := b.dial()
		s, err := spiffe.NewAPIClient(c).SubscribeToX509SVID(ctx, &spiffe.SubscribeToX509SVIDRequest{Reference: b.packed(r)})
		if err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: health: %v", name, err)
		}
		if err := reflect(ctx, c); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: reflection: %v", name, err)
		}
		if err := c.Invoke(ctx, "/acme.Thing/Do", &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: an unknown method: %v", name, err)
		}
	}
}

func reflect(ctx context.Context, c *grpc.ClientConn) error {
	s, err := grpc_reflection_v1.NewServerReflectionClient(c).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	err = s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	m, err := s.Recv()
	if err != nil {
		return err
	}
	for _, one := range m.GetListServicesResponse().GetService() {
		if one.GetName() == "spiffe.broker.API" {
			return nil
		}
	}
	return errors.New("spiffe.broker.API is not listed")
}

func testStranger(t *testing.T, b *bench) {
	_, r := b.run(1)
	for name, who := range map[string]*process{
		"another user":         newProcess("unix.uid", "1000", "systemd.unit", "ward-egress.service"),
		"another unit":         newProcess("unix.uid", "990", "systemd.unit", "portal.service"),
		"no unit":              newProcess("unix.uid", "990"),
		"a user's own manager": newProcess("unix.uid", "990", "systemd.user_unit", "ward-egress.service"),
	} {
		b.become(who)
		c := b.dial()
		_, _, err := b.ask(spiffe.NewAPIClient(c), r)
		wantCode(t, err, codes.PermissionDenied)
		v, why, reported := b.seen.refused(info(t, err).GetMetadata()["reference"])
		if !reported || !errors.Is(why, workload.ErrNotBroker) || v.PID != 990 {
			t.Errorf("%s: reported as %+v, %v", name, v, why)
		}
		if _, err := grpc_health_v1.NewHealthClient(c).Check(b.headed(), &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: health: %v", name, err)
		}
		if err := reflect(b.headed(), c); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: reflection: %v", name, err)
		}
	}
	if n := len(b.seen.attested()); n != 0 {
		t.Errorf("%d processes were attested for strangers", n)
	}
}

func testStarting(t *testing.T, b *bench) {
	b.fall()
	b.starting = true
	b.rise()
	_, r := b.run(1)
	_, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.Unavailable)
	b.agent.server.SetReady()
	_, _, err = b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
}

func testStopping(t *testing.T, b *bench) {
	_, r := b.run(1)
	s, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	b.fall()
	_, err = s.Recv()
	wantCode(t, err, codes.Unavailable)
}

func testReflection(t *testing.T, b *bench) {
	if err := reflect(b.headed(), b.dial()); err != nil {
		t.Error(err)
	}
	h, err := grpc_health_v1.NewHealthClient(b.dial()).Check(b.headed(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", h, err)
	}
}

func testJWT(t *testing.T, b *bench) {
	_, r := b.run(1)
	api := b.raw()
	_, err := api.FetchJWTSVID(b.headed(), &spiffe.FetchJWTSVIDRequest{Reference: b.packed(r), Audience: []string{"a"}})
	wantCode(t, err, codes.Unimplemented)
	s, err := api.SubscribeToJWTBundles(b.headed(), &spiffe.SubscribeToJWTBundlesRequest{Reference: b.packed(r)})
	if err == nil {
		_, err = s.Recv()
	}
	wantCode(t, err, codes.Unimplemented)
}

// info is the ErrorInfo of a refusal.
func info(t testing.TB, err error) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			return i
		}
	}
	t.Fatalf("%v has no ErrorInfo", err)
	return nil
}

func wantInfo(t testing.TB, err error, code codes.Code, reason string) {
	t.Helper()
	wantCode(t, err, code)
	if i := info(t, err); i.GetReason() != reason || i.GetDomain() != "spiffe.io" || i.GetMetadata()["reference"] == "" {
		t.Errorf("%v", i)
	}
}

func testRefusedReferences(t *testing.T, b *bench) {
	api := b.raw()
	for name, w := range refused(t) {
		s, err := api.SubscribeToX509SVID(b.headed(), &spiffe.SubscribeToX509SVIDRequest{Reference: w})
		if err == nil {
			_, err = s.Recv()
		}
		wantInfo(t, err, codes.InvalidArgument, "WORKLOAD_REFERENCE_INVALID")
		bundles, err := api.SubscribeToX509Bundles(b.headed(), &spiffe.SubscribeToX509BundlesRequest{Reference: w})
		if err == nil {
			_, err = bundles.Recv()
		}
		wantInfo(t, err, codes.InvalidArgument, "WORKLOAD_REFERENCE_INVALID")
		if _, why, reported := b.seen.refused(info(t, err).GetMetadata()["reference"]); !reported || !errors.Is(why, attest.ErrReference) {
			t.Errorf("%s: reported as %v", name, why)
		}
	}
}

func testFullState(t *testing.T, b *bench) {
	_, r := b.run(1)
	s, m, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	if len(m.GetSvids()) != 1 {
		t.Fatalf("%v", m)
	}
	b.load(portal(), lent("nurse", "unix.uid", "1000"))
	more, err := s.Recv()
	if err != nil || len(more.GetSvids()) != 2 {
		t.Fatalf("%v, %v", more, err)
	}
	_, root := b.authority.ca()
	b.authority.publish(b.authority.root, root)
	changed, err := s.Recv()
	if err != nil || len(changed.GetSvids()) != 2 || !bytes.Contains(changed.GetSvids()[1].GetBundle(), root.Raw) {
		t.Fatalf("%v, %v", changed, err)
	}
}

func testNotFound(t *testing.T, b *bench) {
	_, _, err := b.ask(b.raw(), someProcess)
	wantInfo(t, err, codes.NotFound, "WORKLOAD_NOT_FOUND")
}

func testNotEntitled(t *testing.T, b *bench) {
	p, r := b.run(1)
	p.facts = sel("unix.uid", "1001")
	_, _, err := b.ask(b.raw(), r)
	wantInfo(t, err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")
	if !strings.Contains(err.Error(), "unix.uid: 1001") {
		t.Errorf("%v", err)
	}
	b.load(own(portal())) // an entry alone lends nothing
	_, r = b.run(2)
	_, _, err = b.ask(b.raw(), r)
	wantInfo(t, err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")
	bundles, err := b.raw().SubscribeToX509Bundles(b.headed(), &spiffe.SubscribeToX509BundlesRequest{Reference: b.packed(r)})
	if err == nil {
		_, err = bundles.Recv()
	}
	wantInfo(t, err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")
	b.fail(attest.ErrMismatch)
	_, _, err = b.ask(b.raw(), r)
	wantInfo(t, err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")
	b.fail(errors.New("no file can be opened"))
	_, _, err = b.ask(b.raw(), r)
	wantCode(t, err, codes.Unavailable)
	if strings.Contains(err.Error(), "no file") {
		t.Errorf("%v", err)
	}
}

func testExit(t *testing.T, b *bench) {
	api := b.raw()
	for state, want := range map[error]codes.Code{attest.ErrExited: codes.NotFound, attest.ErrReplaced: codes.PermissionDenied} {
		p, r := b.run(1)
		s, _, err := b.ask(api, r)
		wantCode(t, err, codes.OK)
		other, stays := b.run(2)
		second, _, err := b.ask(api, stays)
		wantCode(t, err, codes.OK)
		p.end(state)
		_, err = s.Recv()
		wantCode(t, err, want)
		// BA §4.2, §4.3: the other workload's stream and the connection go on.
		other.end(attest.ErrExited)
		_, err = second.Recv()
		wantCode(t, err, codes.NotFound)
	}
}

func testSVIDs(t *testing.T, b *bench) {
	_, r := b.run(1, "exe.path", "/usr/bin/inner")
	b.load(portal(), lent("nurse", "unix.uid", "1000"), own(lent("inner", "unix.uid", "1000", "exe.path", "/usr/bin/inner")))
	_, m, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	if len(m.GetSvids()) != 2 {
		t.Fatalf("%v", m)
	}
	for _, s := range m.GetSvids() {
		chain, err := x509.ParseCertificates(s.GetX509Svid())
		if err != nil {
			t.Fatal(err)
		}
		if id := chain[0].URIs[0].String(); id != s.GetSpiffeId() {
			t.Errorf("%s bears %s", s.GetSpiffeId(), id)
		}
		if life := time.Until(chain[0].NotAfter); life > 15*time.Minute+time.Second {
			t.Errorf("lent for %v", life)
		}
		if _, err := x509.ParsePKCS8PrivateKey(s.GetX509SvidKey()); err != nil {
			t.Error(err)
		}
		if roots, err := x509.ParseCertificates(s.GetBundle()); err != nil || len(roots) != 1 {
			t.Errorf("%v", err)
		}
	}
	for _, v := range b.seen.attested() { // each lending is reported with the broker
		if v.Broker == nil || v.Broker.PID != 990 || v.Want != workload.LentSVIDs || v.PID != 1 {
			t.Errorf("reported as %+v", v)
		}
	}
}

func testHints(t *testing.T, b *bench) {
	a, c := portal(), lent("nurse", "unix.uid", "1000")
	a.Hint, c.Hint = "external", "external"
	b.load(a, c)
	_, r := b.run(1)
	_, m, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	if h := []string{m.GetSvids()[0].GetHint(), m.GetSvids()[1].GetHint()}; h[0] != "external" || h[1] != "" {
		t.Errorf("%q", h)
	}
}

func testBundles(t *testing.T, b *bench) {
	_, r := b.run(1)
	s, err := b.raw().SubscribeToX509Bundles(b.headed(), &spiffe.SubscribeToX509BundlesRequest{Reference: b.packed(r)})
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil || !bytes.Equal(m.GetBundles()["spiffe://clinic.test"], b.authority.root.Raw) || len(m.GetBundles()) != 1 {
		t.Fatalf("%v, %v", m, err)
	}
	b.load()
	_, err = s.Recv()
	wantInfo(t, err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")
}

func testDefault(t *testing.T, b *bench) {
	b.load(lent("a", "unix.uid", "1000"), lent("z", "unix.uid", "1000", "exe.path", "/usr/bin/z"))
	_, r := b.run(1, "exe.path", "/usr/bin/z")
	_, m, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	if id := m.GetSvids()[0].GetSpiffeId(); id != "spiffe://clinic.test/z" {
		t.Error(id)
	}
}
