package proxy

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// Five failures in a row open the breaker; then one call at a time tries, and the pauses grow up to a bound.
func TestBreaker(t *testing.T) {
	now := time.Now()
	b := &breaker{}
	call := func(v verdict) error {
		n, err := b.enter(now, "fhir")
		if err != nil {
			return err
		}
		b.leave(now, n, v, errors.New("refused"))
		return nil
	}
	for range breakAfter - 1 {
		_ = call(fails)
	}
	_ = call(nothing)
	_ = call(works)
	for i := range breakAfter {
		if err := call(fails); err != nil {
			t.Fatalf("failure %d: %v", i, err)
		}
	}
	var r *Refusal
	if err := call(works); !errors.As(err, &r) || r.Cause != CauseUpstreamDown {
		t.Fatalf("open: %v", err)
	}
	for wait := breakFirst; wait < 2*breakMost; wait *= 2 {
		now = now.Add(min(wait, breakMost))
		n, err := b.enter(now, "fhir")
		if err != nil {
			t.Fatalf("after %s nobody may try: %v", wait, err)
		}
		if _, err := b.enter(now, "fhir"); err == nil {
			t.Fatal("two may try")
		}
		b.leave(now, n, fails, errors.New("refused"))
		if _, err := b.enter(now.Add(min(2*wait, breakMost)/2-1), "fhir"); err == nil {
			t.Fatalf("after %s more the next may try", wait)
		}
	}
	now = now.Add(breakMost)
	if err := call(nothing); err != nil { // whoever tried went away
		t.Fatal(err)
	}
	if err := call(works); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := call(works); err != nil {
			t.Fatal(err)
		}
	}
}

// Calls that were under way when a destination went down fail together: they open the breaker for as long as five would.
func TestBreakerCountsWhatFailsTogetherOnce(t *testing.T) {
	now := time.Now()
	b := &breaker{}
	for range 100 {
		if _, err := b.enter(now, "fhir"); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		b.leave(now, 0, fails, errors.New("reset"))
	}
	if _, err := b.enter(now.Add(breakFirst/2-1), "fhir"); err == nil {
		t.Error("a hundred failures do not open it")
	}
	if _, err := b.enter(now.Add(breakFirst), "fhir"); err != nil {
		t.Errorf("after %s nobody may try: %v", breakFirst, err)
	}
}

// A call that is let through and does not come back, for its caller sends slowly, keeps the others out for a moment only;
// what becomes of it then changes nothing any more, unless it shows that the destination works.
func TestBreakerWaitsForNoSlowCall(t *testing.T) {
	now := time.Now()
	b := &breaker{}
	for range breakAfter {
		b.leave(now, 0, fails, errors.New("reset"))
	}
	now = now.Add(breakFirst)
	slow, err := b.enter(now, "fhir")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.enter(now.Add(tryTime-1), "fhir"); err == nil {
		t.Fatal("the next does not wait for the first")
	}
	now = now.Add(tryTime)
	next, err := b.enter(now, "fhir")
	if err != nil {
		t.Fatalf("the next waits for the first without end: %v", err)
	}
	b.leave(now, slow, nothing, nil)
	b.leave(now, slow, fails, errors.New("reset"))
	if _, err := b.enter(now, "fhir"); err == nil {
		t.Fatal("the first one's end lets two try")
	}
	b.leave(now, next, nothing, nil)
	if _, err := b.enter(now, "fhir"); err != nil {
		t.Fatalf("the next one's end lets nobody try: %v", err)
	}
	b.leave(now, slow, works, nil)
	for range 3 {
		if _, err := b.enter(now, "fhir"); err != nil {
			t.Fatalf("it works: %v", err)
		}
	}
}

// What a call's end says of its destination.
func TestJudge(t *testing.T) {
	open, gone, late := context.Background(), ended(context.Canceled), ended(context.DeadlineExceeded)
	connect := Refuse(CauseUpstream, "%w", fmt.Errorf("%w: refused", errConnect))
	reply := fmt.Errorf("%w: reset", wire.ErrNoReply)
	for name, c := range map[string]struct {
		ctx  context.Context
		err  error
		want verdict
	}{
		"a reply":                     {open, nil, works},
		"no connection":               {open, connect, fails},
		"no connection in time":       {late, connect, fails},
		"the caller did not wait":     {gone, connect, nothing},
		"no reply":                    {open, reply, fails},
		"no reply in time":            {late, context.DeadlineExceeded, nothing},
		"the caller's body":           {open, wire.ErrRequestBody, nothing},
		"a request that is none":      {open, wire.ErrRequest, nothing},
		"no reply to who has gone":    {gone, reply, nothing},
		"a turn that has not come up": {late, context.DeadlineExceeded, nothing},
		"no reply to half a request":  {open, fmt.Errorf("%w: %w", wire.ErrUnfinished, reply), nothing},
		"no time left to connect":     {late, Refuse(CauseUpstreamTimeout, "%w", context.DeadlineExceeded), nothing},
	} {
		if got := judge(c.ctx, c.err); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func ended(how error) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	if errors.Is(how, context.DeadlineExceeded) {
		cancel()
		ctx, cancel = context.WithDeadline(context.Background(), time.Unix(1, 0))
	}
	cancel()
	return ctx
}
