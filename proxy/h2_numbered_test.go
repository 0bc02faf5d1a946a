package proxy_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire/h2test"
)

// h2 connects to ingress with an SVID, by HTTP/2.
func (w *world) h2(t testing.TB, svid *x509svid.SVID) *h2test.Peer {
	t.Helper()
	c, err := w.handshake(svid, offerH2)
	if err != nil || c.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatal("no h2: ", err)
	}
	return h2test.New(t, c)
}

func offerH2(c *tls.Config) { c.NextProtos = []string{"h2"} }

// fields are those of a request to the service, with a good token unless there is one.
func (w *world) fields(method, path string, more ...string) []string {
	f := append([]string{":method", method, ":scheme", "https", ":path", path, ":authority", serviceName}, more...)
	for i := 0; i < len(f); i += 2 {
		if f[i] == "authorization" {
			return f
		}
	}
	return append(f, "authorization", "Bearer "+w.token())
}

// asked is an answer in the form that checkRefusal takes.
func asked(a *h2test.Answer) *answer {
	return &answer{status: a.Status, header: a.Header, body: a.Body}
}

// h2Row is a request by HTTP/2 that is refused with this cause, with nothing of it at the FHIR server.
type h2Row struct {
	name   string // its number comes first
	fields []string
	body   string
	cause  proxy.Cause
}

// h2Rows are the tests that PROXY.md numbers, by HTTP/2, as far as one request plays them.
func (w *world) h2Rows() []h2Row {
	const a = "/fhir/Patient/a"
	fhirJSON := []string{"content-type", "application/fhir+json"}
	authority := func(v string) []string {
		return []string{":method", "GET", ":scheme", "https", ":path", a, ":authority", v, "authorization", "Bearer " + w.token()}
	}
	many := func(n int) (f []string) {
		for i := range n {
			f = append(f, "x-"+strconv.Itoa(i), "x")
		}
		return f
	}
	rows := []h2Row{
		{"1 transfer-encoding", w.fields("POST", "/fhir/Observation", append(fhirJSON, "transfer-encoding", "chunked")...), "x", proxy.CauseMalformed},
		{"2 content-length twice", w.fields("POST", "/fhir/Observation", append(fhirJSON, "content-length", "1", "content-length", "1")...), "x", proxy.CauseMalformed},
		{"2 content-length: 1, 1", w.fields("POST", "/fhir/Observation", append(fhirJSON, "content-length", "1, 1")...), "x", proxy.CauseMalformed},
		{"2 content-length: +1", w.fields("POST", "/fhir/Observation", append(fhirJSON, "content-length", "+1")...), "x", proxy.CauseMalformed},
		{"2 content-length empty", w.fields("POST", "/fhir/Observation", append(fhirJSON, "content-length", "")...), "x", proxy.CauseMalformed},
		{"21 content-length too long", w.fields("POST", "/fhir/Observation", append(fhirJSON, "content-length", "9")...), "x", proxy.CauseMalformed},
		{"21 content-length too short", w.fields("POST", "/fhir/Observation", append(fhirJSON, "content-length", "1")...), newObservation, proxy.CauseMalformed},
		{"21 content-length 0, and a body", w.fields("GET", a, "content-length", "0"), "x", proxy.CauseMalformed},
		{"21 CR LF in a value", w.fields("GET", a, "x", "a\r\nWard-Caller: b"), "", proxy.CauseMalformed},
		{"21 upper case", w.fields("GET", a, "X-Upper", "a"), "", proxy.CauseMalformed},
		{"11 connection names authorization", w.fields("GET", a, "connection", "authorization"), "", proxy.CauseMalformed},
		{"11 te", w.fields("GET", a, "te", "gzip"), "", proxy.CauseMalformed},
		{"12 two tokens", w.fields("GET", a, "authorization", "Bearer a.b.c", "authorization", "Bearer a.b.c"), "", proxy.CauseTokenMalformed},
		{"12 a token in the query", w.fields("GET", a+"?access_token=a.b.c"), "", proxy.CauseTokenMalformed},
		{"12 an oversized token", w.fields("GET", a, "authorization", "Bearer "+strings.Repeat("a", 17<<10)), "", proxy.CauseTokenMalformed},
		{"10 an unknown pseudo-header field", append([]string{":ward-caller", "forged"}, w.fields("GET", a)...), "", proxy.CauseMalformed},
		{"10 a pseudo-header field behind the others", w.fields("GET", a, "x", "y", ":authority", "fhir.other.mesh.internal"), "", proxy.CauseMalformed},
		{"17 :method twice", append([]string{":method", "DELETE"}, w.fields("GET", a)...), "", proxy.CauseMalformed},
		{"17 :path twice", append([]string{":path", "/fhir/Account/1"}, w.fields("GET", a)...), "", proxy.CauseMalformed},
		{"20 a URI of 16 KB", w.fields("GET", "/"+strings.Repeat("a", 16<<10)), "", proxy.CauseMalformed},
		{"12 alg none", w.fields("GET", a, "authorization", "Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.e30."), "", proxy.CauseTokenMalformed},
		{"13 no authority", []string{":method", "GET", ":scheme", "https", ":path", a}, "", proxy.CauseMalformed},
		{"13 authority empty", authority(""), "", proxy.CauseMalformed},
		{"13 authority with @", authority("a@" + serviceName), "", proxy.CauseMalformed},
		{"13 authority with /", authority(serviceName + "/x"), "", proxy.CauseMalformed},
		{`13 authority with \`, authority(serviceName + `\x`), "", proxy.CauseMalformed},
		{"13 authority with #", authority(serviceName + "#x"), "", proxy.CauseMalformed},
		{"13 authority with a bad port", authority(serviceName + ":99999"), "", proxy.CauseMalformed},
		{"13 authority not the route's", authority("fhir.other.mesh.internal"), "", proxy.CauseMalformed},
		{"13 host is not authority", w.fields("GET", a, "host", "fhir.other.mesh.internal"), "", proxy.CauseMalformed},
		{"13 the route's host, another authority", append(authority("fhir.other.mesh.internal"), "host", serviceName), "", proxy.CauseMalformed},
		{"14 absolute form", w.fields("GET", "http://"+serviceName+a), "", proxy.CauseMalformed},
		{"14 asterisk form", w.fields("OPTIONS", "*"), "", proxy.CauseMalformed},
		{"14 CONNECT", []string{":method", "CONNECT", ":authority", serviceName}, "", proxy.CauseMethod},
		{"14 TRACE", w.fields("TRACE", a), "", proxy.CauseMethod},
		{"14 lower-case method", w.fields("get", a), "", proxy.CauseMethod},
		{"18 a GET with a body", w.fields("GET", a, "content-length", "1"), "x", proxy.CauseMalformed},
		{"18 a GET with a body of no length", w.fields("GET", a), "x", proxy.CauseMalformed},
		{"20 500 fields", w.fields("GET", a, many(500)...), "", proxy.CauseHeadTooLarge},
		{"20 a head of 100 KB", w.fields("GET", a, "x", strings.Repeat("x", 100<<10)), "", proxy.CauseHeadTooLarge},
		{"22 extended CONNECT", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", a, ":authority", serviceName}, "", proxy.CauseMalformed},
		{"22 upgrade", w.fields("GET", a, "upgrade", "h2c"), "", proxy.CauseMalformed},
	}
	for _, trick := range []string{"..", ".", "%2e", "%2e%2e", "%252e", "%2f", "%5c", `\`, ";", "a;b", "%3b", "%00", "a/../b", "a//", "a#b", "\xe9", "%zz"} {
		rows = append(rows, h2Row{"16 " + trick, w.fields("GET", "/fhir/Patient/"+trick), "", proxy.CauseMalformed})
	}
	return rows
}

// testH2Refusals tries those of one number.
func testH2Refusals(n int) func(*testing.T) {
	return func(t *testing.T) {
		w := newWorld(t, setup{})
		tried := 0
		for _, r := range w.h2Rows() {
			if number(t, r.name) != n {
				continue
			}
			tried++
			t.Run(r.name, func(t *testing.T) {
				p := w.h2(t, w.portal.svid.Load())
				p.Open(1, r.body == "", r.fields...)
				if r.body != "" {
					p.Do(p.WriteData(1, true, []byte(r.body)))
				}
				w.checkRefusal(t, asked(p.Answer(1)), proxy.HopIngress, r.cause)
				for !p.Gone && p.Next() != nil { //nolint:revive // what comes is taken in
				}
				if !p.Gone { // GOAWAY: no stream is taken any more
					t.Error("the connection goes on")
				}
				_ = p.Conn.Close()
				w.upstream.untouched(t)
			})
		}
		if tried == 0 {
			t.Error("there is no such row")
		}
	}
}

// 10, 17: what forges an identity goes no further, in whatever spelling and place.
func testH2ForgedFieldsAreStripped(t *testing.T) {
	w := newWorld(t, setup{})
	p := w.h2(t, w.portal.svid.Load())
	id := uint32(1)
	for _, name := range append(forged, "Ward-Decision") {
		var more []string
		for _, s := range spellings(name) {
			more = append(more, strings.ToLower(s), "forged", strings.ToLower(s), "forged again")
		}
		p.Open(id, true, w.fields("GET", "/fhir/Patient/a", more...)...)
		if a := p.Answer(id); a.Status != 200 {
			t.Fatalf("%s: %d %s", name, a.Status, a.Body)
		}
		id += 2
	}
	for i, r := range w.upstream.all() {
		if contains(r.raw, "forged") || len(r.field("Ward-Caller")) != 1 {
			t.Errorf("%s was passed on: %q", forged[min(i, len(forged)-1)], r.head)
		}
	}
	if n := len(w.upstream.all()); n != len(forged)+1 {
		t.Errorf("%d requests arrived", n)
	}
}

// 5: a write with trailers, whose fields are dropped; the body arrives whole.
func testH2TrailersAreDropped(t *testing.T) {
	w := newWorld(t, setup{})
	p := w.h2(t, w.ehr.svid.Load())
	p.Open(1, false, w.fields("POST", "/fhir/Observation", "content-type", "application/fhir+json", "trailer", "ward-caller",
		"authorization", "Bearer "+w.issuer.token(t, "ehr"))...)
	p.Do(p.WriteData(1, false, []byte(newObservation)))
	p.Open(1, true, "ward-caller", "forged", "x-forwarded-for", "forged")
	if a := p.Answer(1); a.Status != 201 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if r := w.upstream.only(t); contains(r.raw, "forged") || r.body != newObservation {
		t.Errorf("passed on: %q", r.raw)
	}
}

// 8: streams are decided on one by one.
func testH2StreamsAreEachDecided(t *testing.T) {
	w := newWorld(t, setup{})
	p := w.h2(t, w.portal.svid.Load())
	want := map[uint32]int{1: 200, 3: 403, 5: 200, 7: 401}
	p.Open(1, true, w.fields("GET", "/fhir/Observation/1")...)
	p.Open(3, true, w.fields("GET", "/fhir/Account/1")...)
	p.Open(5, true, w.fields("GET", "/fhir/Observation/1")...)
	p.Open(7, true, w.fields("GET", "/fhir/Observation/1", "authorization", "Bearer a.b.c")...)
	ids := map[string]bool{}
	for id, status := range want {
		a := asked(p.Answer(id))
		if a.status != status || ids[a.decision()] || a.decision() == "" {
			t.Errorf("stream %d: got %d %q, want %d and an id of its own", id, a.status, a.decision(), status)
		}
		ids[a.decision()] = true
	}
	if n := len(w.upstream.all()); n != 2 {
		t.Errorf("%d requests reached the FHIR server, want 2", n)
	}
}

// Events reach a caller by HTTP/2 as they come.
func TestH2EventsAreFlushed(t *testing.T) {
	w := newWorld(t, setup{})
	server := w.upstream.chunks(t)
	p := w.h2(t, w.portal.svid.Load())
	p.Open(1, true, w.fields("GET", "/fhir/Observation/1")...)
	sent := ""
	for i := range 3 {
		event := fmt.Sprintf("data: %d\n\n", i)
		sent += event
		server.says(event)
		if a := p.So(1, len(sent)); a.Body != sent || a.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%+v", a)
		}
	}
	server.ends()
	if a := p.Answer(1); !a.Whole || a.Body != sent {
		t.Errorf("%+v", a)
	}
}

// A gRPC client that may not call learns that, and under which decision.
func TestGRPCRefusals(t *testing.T) {
	w := newWorld(t, setup{})
	call := func(t *testing.T, p *process) (*status.Status, metadata.MD) {
		t.Helper()
		cfg := proxy.ClientTLS(p.svid.Load(), x509bundle.NewSet(w.ca.bundle()), w.service.ID, time.Now)
		cfg.NextProtos = []string{"h2"}
		conn, err := grpc.NewClient("passthrough:///"+w.address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithAuthority(serviceName))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		var md metadata.MD
		err = conn.Invoke(t.Context(), "/fhir.Patient/Read", &emptypb.Empty{}, &emptypb.Empty{}, grpc.Trailer(&md), grpc.Header(&md))
		return status.Convert(err), md
	}
	for name, c := range map[string]struct {
		process *process
		code    codes.Code
		cause   proxy.Cause
	}{
		"a caller":     {w.portal, codes.InvalidArgument, proxy.CauseMalformed},
		"not a caller": {w.process("/app/other"), codes.PermissionDenied, proxy.CauseNotACaller},
	} {
		t.Run(name, func(t *testing.T) {
			st, _ := call(t, c.process)
			records := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Caller == c.process.id.String() })
			if st.Code() != c.code || records[0].Cause != c.cause || !contains(st.Message(), records[0].Decision) {
				t.Errorf("%v, %s", st, toJSON(records))
			}
			w.upstream.untouched(t)
		})
	}
	// Over HTTP/1.1 a refusal is a refusal, whatever is said to be sent.
	a := send(t, w.dialIngress(w.portal.svid.Load()), request("POST /fhir.Patient/Read", "x", "Content-Type: application/grpc", bearer(w.token())))
	w.checkRefusal(t, a, proxy.HopIngress, proxy.CauseMalformed)
	// The head alone is the whole answer: gRPC, Trailers-Only.
	for _, media := range []string{"application/grpc", "application/grpc+proto", "application/grpc; x=y"} {
		p := w.h2(t, w.portal.svid.Load())
		p.Open(1, true, w.fields("POST", "/fhir.Patient/Read", "content-type", media, "te", "trailers")...)
		if a := p.Answer(1); a.Status != 200 || !a.Bare || a.Header.Get("Grpc-Status") != "3" || len(a.Header.Get("Ward-Decision")) != 26 {
			t.Errorf("%s: %+v", media, a)
		}
	}
	p := w.h2(t, w.portal.svid.Load())
	p.Open(1, true, w.fields("POST", "/fhir.Patient/Read", "content-type", "application/grpcish")...)
	if a := p.Answer(1); a.Status != 400 || a.Header.Get("Grpc-Status") != "" {
		t.Errorf("%+v", a)
	}
}

// A ward that stops tells the peer to go, takes nothing new, and lets what runs end.
func TestH2Shutdown(t *testing.T) {
	w := newWorld(t, setup{})
	server := w.upstream.chunks(t)
	p, idle := w.h2(t, w.portal.svid.Load()), w.h2(t, w.portal.svid.Load())
	idle.Next()
	p.Open(1, true, w.fields("GET", "/fhir/Observation/1")...)
	server.says("one")
	p.So(1, 3)
	done := make(chan error, 1)
	go func() { done <- w.ingress.Shutdown(t.Context()) }()
	for !p.Gone && p.Next() != nil {
	}
	if p.Code != http2.ErrCodeNo || p.Last != 1 {
		t.Errorf("GOAWAY %v after stream %d", p.Code, p.Last)
	}
	if idle.End(); !idle.Gone || idle.Code != http2.ErrCodeNo {
		t.Error("nobody told the idle peer")
	}
	p.Open(3, true, w.fields("GET", "/fhir/Observation/1")...) // which the peer knows not to be taken
	server.says("two")
	if a := p.So(1, 6); a.Body != "onetwo" {
		t.Errorf("%+v", a)
	}
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned %v while a call was running", err)
	default:
	}
	server.ends()
	if a := p.Answer(1); !a.Whole {
		t.Errorf("%+v", a)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.upstream.only(t)
}

// 15: a stream ends with the first of the two SVIDs on its connection.
func testH2ConnectionEndsWithItsIdentity(t *testing.T) {
	w := newWorld(t, setup{})
	w.upstream.chunks(t)
	p := w.h2(t, w.ca.issue(t, "/app/portal", endingIn(4*time.Second)))
	p.Open(1, true, w.fields("GET", "/fhir/Observation/1")...)
	if a := p.Answer(1); a.Status != http.StatusOK || a.Whole {
		t.Errorf("%+v", a)
	}
	out := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome })[0]
	if out.Complete {
		t.Errorf("recorded as complete: %s", toJSON(out))
	}
}
