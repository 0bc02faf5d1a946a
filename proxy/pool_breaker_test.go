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
		if err := b.enter(now, "fhir"); err != nil {
			return err
		}
		b.leave(now, v, errors.New("refused"))
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
		if err := b.enter(now, "fhir"); err != nil {
			t.Fatalf("after %s nobody may try: %v", wait, err)
		}
		if err := b.enter(now, "fhir"); err == nil {
			t.Fatal("two may try")
		}
		b.leave(now, fails, errors.New("refused"))
		if err := b.enter(now.Add(min(2*wait, breakMost)/2-1), "fhir"); err == nil {
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
