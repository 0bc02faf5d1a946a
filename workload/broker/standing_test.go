package broker_test

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/grpc/codes"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

// A broker is one only for as long as it lives, is the same program, and is on the list.
func TestBrokerThatIsOneNoLonger(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*bench)
	}{
		{"exited", func(b *bench) { b.peer().end(attest.ErrExited) }},
		{"replaced its program", func(b *bench) { b.peer().end(attest.ErrReplaced) }},
		{"was taken off the list", func(b *bench) { b.allow(sel("unix.uid", "991")) }},
		{"the list is empty", func(b *bench) { b.allow() }},
		{"the list has a set of nothing", func(b *bench) { b.allow(sel()) }},
		{"the list has a set without a boundary", func(b *bench) { b.allow(sel("exe.path", "/usr/bin/ward")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := serve(t, []*workload.Entry{portal()})
			c := b.dial()
			_, r := b.run(1)
			s, _, err := b.ask(spiffe.NewAPIClient(c), r)
			wantCode(t, err, codes.OK)
			tt.change(b)
			_, err = s.Recv()
			wantCode(t, err, codes.PermissionDenied)
			v, why, reported := b.seen.refused(info(t, err).GetMetadata()["reference"])
			if !reported || !errors.Is(why, workload.ErrNotBroker) || v.PID != 990 {
				t.Errorf("reported as %+v, %v", v, why)
			}
			_, _, err = b.ask(spiffe.NewAPIClient(c), r) // nor is a new call on the old connection let in
			wantCode(t, err, codes.PermissionDenied)
		})
	}
}

func TestBrokerStaysWhereItsListChangesElsewhere(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	s, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	b.allow(sel("unix.uid", "991"), egress)
	b.load(portal(), lent("nurse", "unix.uid", "1000"))
	if m, err := s.Recv(); err != nil || len(m.GetSvids()) != 2 {
		t.Fatalf("%v, %v", m, err)
	}
}

// An exec that no event has told of yet is seen by each call.
func TestBrokerIsLookedAtInEachCall(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	c := spiffe.NewAPIClient(b.dial())
	_, r := b.run(1)
	_, _, err := b.ask(c, r)
	wantCode(t, err, codes.OK)
	b.peer().become(attest.ErrReplaced)
	_, _, err = b.ask(c, r)
	wantCode(t, err, codes.PermissionDenied)
}

func TestBrokerIsAttestedAgainAndAgain(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()}, func(_ *bench, o *broker.Options) { o.Recheck = time.Millisecond })
	_, r := b.run(1)
	s, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	b.peer().become(attest.ErrReplaced)
	_, err = s.Recv()
	wantCode(t, err, codes.PermissionDenied)
}

// What could not be read is not held against a broker: it is asked to come again.
func TestBrokerThatCannotBeRead(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	good := b.who
	bad := newProcess()
	bad.facts, bad.uid, bad.fail = good.facts, 990, errors.New("the unit cannot be read")
	b.become(bad)
	_, r := b.run(1)
	_, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.Unavailable)
	b.become(nil) // nor is one that cannot be pinned
	_, _, err = b.ask(b.raw(), r)
	wantCode(t, err, codes.Unavailable)
	b.become(good)
	_, _, err = b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
}

func TestStrangersDoNotCrowdBrokersOut(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()}, func(_ *bench, o *broker.Options) { o.Limits = broker.Limits{Strangers: 2, Conns: 1, RatePerUID: 1000} })
	_, r := b.run(1)
	b.mu.Lock()
	good := b.who
	b.mu.Unlock()
	b.become(newProcess("unix.uid", "1000"))
	for i, want := range []codes.Code{codes.PermissionDenied, codes.PermissionDenied, codes.Unavailable} {
		if _, _, err := b.ask(b.raw(), r); err == nil {
			t.Errorf("stranger %d was served", i)
		} else {
			wantCode(t, err, want)
		}
	}
	b.become(good)
	_, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	_, _, err = b.ask(b.raw(), r) // brokers have places of their own, and no more
	wantCode(t, err, codes.Unavailable)
}

// Where the list names no user, anybody could be a broker until it is looked at. Who turns out to be none makes room.
func TestStrangersWhoCouldHaveBeenBrokers(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()}, func(_ *bench, o *broker.Options) { o.Limits = broker.Limits{Strangers: 2, Conns: 1, RatePerUID: 1000} })
	b.allow(sel("systemd.unit", "ward-egress.service"))
	_, r := b.run(1)
	b.mu.Lock()
	good := b.who
	b.mu.Unlock()
	b.become(newProcess("unix.uid", "1000", "systemd.unit", "other.service"))
	for _, want := range []codes.Code{codes.PermissionDenied, codes.PermissionDenied, codes.Unavailable} {
		_, _, err := b.ask(b.raw(), r)
		wantCode(t, err, want)
	}
	b.become(good)
	_, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
}

func TestRateOfOneUser(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()}, func(_ *bench, o *broker.Options) { o.Limits = broker.Limits{RatePerUID: 1} })
	_, r := b.run(1)
	// What is allowed is what the time allows: two at once, and one more for each second that this takes.
	began, taken := time.Now(), 0
	for {
		_, _, err := b.ask(b.raw(), r)
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
}

func TestStreamsAreBounded(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()}, func(_ *bench, o *broker.Options) { o.Limits = broker.Limits{Streams: 2, RatePerUID: 1000} })
	_, r := b.run(1)
	for _, want := range []codes.Code{codes.OK, codes.OK, codes.Unavailable} {
		_, _, err := b.ask(b.raw(), r)
		wantCode(t, err, want)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := broker.New(broker.Options{}); err == nil {
		t.Error("nothing at all was taken")
	}
	b := serve(t, nil)
	for _, change := range []func(*broker.Options){
		func(o *broker.Options) { o.Limits.Streams = -1 },
		func(o *broker.Options) { o.Recheck = -1 },
		func(o *broker.Options) { o.Brokers = nil },
		func(o *broker.Options) { o.Attestors = nil },
	} {
		o := broker.Options{Lender: b.agent.service, Pin: b.pin, Resolve: b.resolve, Attestors: []attest.Attestor{teller{}}, Brokers: b.allowed, Registerer: prometheus.NewRegistry()}
		change(&o)
		if _, err := broker.New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	if _, err := broker.NewClient(broker.ClientOptions{Socket: b.socket}); err == nil {
		t.Error("a client without a check was taken")
	}
}

func TestMetrics(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	_, _, err := b.ask(b.raw(), r)
	wantCode(t, err, codes.OK)
	problems, err := testutil.GatherAndLint(b.agent.metrics)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	families, err := b.agent.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetGauge().GetValue()
		}
	}
	if got["ward_broker_api_connections"] != 1 || got["ward_broker_api_streams"] != 1 {
		t.Errorf("%v", got)
	}
}
