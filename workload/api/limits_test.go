package api_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus/testutil"
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

func limited(l api.Limits) choice { return func(_ *bench, o *api.Options) { o.Limits = l } }

// other is a process of another user.
func other() *process {
	p := newProcess("unix.uid", "1001")
	p.uid = 1001
	return p
}

var twoUsers = []*workload.Entry{portal, entry("other", "unix.uid", "1001")}

func open(t *testing.T, b *bench, c *grpc.ClientConn) (spiffe.SpiffeWorkloadAPI_FetchX509SVIDClient, error) {
	t.Helper()
	s, err := spiffe.NewSpiffeWorkloadAPIClient(c).FetchX509SVID(b.headed(), &spiffe.X509SVIDRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	return s, err
}

func TestConnectionsOfOneUser(t *testing.T) {
	b := serve(t, twoUsers, limited(api.Limits{ConnsPerUID: 2}))
	conns := []*grpc.ClientConn{b.dial(), b.dial(), b.dial()}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.Unavailable} {
		_, err := open(t, b, conns[i])
		wantCode(t, err, want)
	}
	b.become(other())
	_, err := open(t, b, b.dial())
	wantCode(t, err, codes.OK)

	b.become(newProcess("unix.uid", "1000"))
	conns[0].Close()
	for { // the server learns of the close when it reads the end of the stream
		c := b.dial()
		if _, err := open(t, b, c); err == nil {
			break
		}
	}
}

func TestAllConnections(t *testing.T) {
	b := serve(t, twoUsers, limited(api.Limits{Conns: 1}))
	_, err := open(t, b, b.dial())
	wantCode(t, err, codes.OK)
	b.become(other())
	_, err = open(t, b, b.dial())
	wantCode(t, err, codes.Unavailable)
}

func TestRateOfOneUser(t *testing.T) {
	b := serve(t, twoUsers, limited(api.Limits{RatePerUID: 1}))
	// What is allowed is what the time allows: two at once, and one more for each second that this takes.
	began, taken := time.Now(), 0
	for {
		_, err := open(t, b, b.dial())
		if err != nil {
			wantCode(t, err, codes.Unavailable)
			break
		}
		if taken++; taken > 2+int(time.Since(began)/time.Second) {
			t.Fatalf("%d connections within %s", taken, time.Since(began))
		}
	}
	if taken < 2 {
		t.Errorf("%d connections are all", taken)
	}
	b.become(other())
	_, err := open(t, b, b.dial())
	wantCode(t, err, codes.OK)
	// The refused client dials again by itself, so that there may be more than one.
	if n := metric(t, b, "ward_workload_api_refused_connections_total"); n < 1 {
		t.Errorf("%v refused connections are counted", n)
	}
}

func TestStreamsOfOneUser(t *testing.T) {
	b := serve(t, twoUsers, limited(api.Limits{StreamsPerUID: 2}))
	c := b.dial()
	ctx, cancel := context.WithCancel(b.headed())
	s, err := spiffe.NewSpiffeWorkloadAPIClient(c).FetchX509SVID(ctx, &spiffe.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	receive(t, s)
	for _, want := range []codes.Code{codes.OK, codes.Unavailable} {
		_, err := open(t, b, c)
		wantCode(t, err, want)
	}
	b.become(other())
	_, err = open(t, b, b.dial())
	wantCode(t, err, codes.OK)
	cancel()
	for { // the server learns of the cancellation when it reads it
		if _, err := open(t, b, c); err == nil {
			break
		}
	}
}

func TestLimitsAreChecked(t *testing.T) {
	b := serve(t, nil)
	if _, err := api.New(api.Options{Watcher: b.service, Pin: func(net.Conn) (workload.Process, error) { return nil, nil }, Registerer: b.metrics, Limits: api.Limits{Conns: -1}}); err == nil {
		t.Error("a negative limit was taken")
	}
	if _, err := api.New(api.Options{}); err == nil {
		t.Error("nothing at all was taken")
	}
}

func TestLargeRequest(t *testing.T) {
	b := serve(t, both)
	_, err := spiffe.NewSpiffeWorkloadAPIClient(b.dial()).ValidateJWTSVID(b.headed(), &spiffe.ValidateJWTSVIDRequest{Svid: strings.Repeat("a", 65<<10)})
	wantCode(t, err, codes.ResourceExhausted)
}

func TestUnpinnedPeerGetsNothing(t *testing.T) {
	b := serve(t, both)
	b.become(nil)
	_, err := open(t, b, b.dial())
	wantCode(t, err, codes.Unavailable)
}

func TestMetrics(t *testing.T) {
	b := serve(t, both)
	s, err := open(t, b, b.dial())
	wantCode(t, err, codes.OK)
	if conns, streams := metric(t, b, "ward_workload_api_connections"), metric(t, b, "ward_workload_api_streams"); conns != 1 || streams != 1 {
		t.Errorf("%v connections, %v streams", conns, streams)
	}
	b.load()
	wantCode(t, first(s, nil), codes.PermissionDenied)
	if n := metric(t, b, "ward_workload_api_calls_total"); n != 1 {
		t.Errorf("%v calls", n)
	}
	problems, err := testutil.GatherAndLint(b.metrics)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// metric is the sum of a metric's series.
func metric(t *testing.T, b *bench, name string) (sum float64) {
	t.Helper()
	families, err := b.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestRefusalIsShortAndPrintable(t *testing.T) {
	pairs := []string{"unix.uid", "1000", "exe.path", "/tmp/a\x1b[31m\xff"}
	for i := range 500 {
		pairs = append(pairs, "unix.group", fmt.Sprint(100000+i))
	}
	b := serve(t, nil)
	b.become(newProcess(pairs...))
	_, err := open(t, b, b.dial())
	wantCode(t, err, codes.PermissionDenied)
	text := err.Error()
	if len(text) > 1300 || strings.Contains(text, "\x1b") || !utf8.ValidString(text) || !strings.Contains(text, "unix.uid: 1000") {
		t.Errorf("%q", text)
	}
}
