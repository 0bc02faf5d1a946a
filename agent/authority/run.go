package authority

import (
	"context"
	"errors"
	"slices"
	"time"
)

// A CA is replaced by the next one well before it ends:
//
//   - The next one is prepared when a third of the CA's life is left, or 30 days when that is less.
//   - It signs once it has been published for the lead: a day, in which every process has asked for an SVID at least
//     once, since none lives longer, and got the bundle with it; but not more than a sixth of the CA's life. Either is
//     four times the refresh hint or more, and SPIFFE Federation §4 asks for three to five times.
//   - The old one is retired when nothing that it signed is valid any more.
//
// While the authority is away it publishes nothing. So after a start a prepared CA waits for another refresh hint.
// Only when the CA in use has ended is there nothing to wait for: no SVID is valid then, and none can be made.
const (
	prepareBefore = 30 * 24 * time.Hour
	longestLead   = MaxX509TTL
	leadShare     = 6 // of the CA's life
	hintShare     = 30

	firstRetry, lastRetry = time.Second, time.Minute
	// longestSleep is how long Run sleeps at most: certificates are dated by the wall clock, which may be corrected,
	// or jump when a suspended host wakes.
	longestSleep = time.Minute
)

// Run prepares, activates and retires CAs when their time has come, until ctx or the authority ends. What fails is
// tried again. Call it once.
func (a *Authority) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for retry := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		a.mu.Lock()
		step, generation, at := a.plan()
		a.mu.Unlock()
		now := a.clock()
		if now.Before(at) {
			retry = 0
			timer.Reset(min(at.Sub(now), longestSleep))
			continue
		}
		var err error
		ctx := context.WithoutCancel(ctx) // a step that has begun is ended
		switch step {
		case Prepare:
			err = a.Prepare(ctx, Order{})
		case Activate:
			err = a.Activate(ctx, Order{})
		case Retire:
			err = a.Retire(ctx, Order{Generation: generation})
		}
		switch {
		case errors.Is(err, ErrClosed):
			return nil
		case err == nil:
			retry = 0
			timer.Reset(0) // there may be more to do
		default:
			a.wakeless() // the failed attempt itself is no news
			retry = min(max(2*retry, firstRetry), lastRetry)
			timer.Reset(retry)
		}
	}
}

// wakeRun has Run look again.
func (a *Authority) wakeRun() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *Authority) wakeless() {
	select {
	case <-a.wake:
	default:
	}
}

// plan is the next step, and when. The caller holds mu.
func (a *Authority) plan() (step Step, generation uint32, at time.Time) {
	step = Prepare
	generation, at = a.newest+1, a.active.cert.NotAfter.Add(-min(a.active.life()/3, prepareBefore))
	if i := slices.IndexFunc(a.cas, func(g *caGeneration) bool { return g.record.State == Prepared }); i >= 0 {
		next := a.cas[i]
		step, generation, at = Activate, next.name.Generation, a.ready(next, 0)
		if now, end := a.clock(), next.cert.NotAfter; !at.Before(end) || !now.Before(end) { // it ages unused since the authority was away
			step, at = Retire, now
		}
	}
	for _, g := range a.cas {
		if g.record.State != Old {
			continue
		}
		if end := a.ends[g.name.Generation]; end.Before(at) || step == Prepare && len(a.cas) >= mostGenerations {
			step, generation, at = Retire, g.name.Generation, end
		}
	}
	return step, generation, at
}

// lead is how long the next CA must have been published before it signs. The caller holds mu.
func (a *Authority) lead() time.Duration {
	life := a.active.life()
	for _, g := range a.cas {
		if g.record.State == Prepared {
			life = min(life, g.life())
		}
	}
	return min(longestLead, life/leadShare)
}

// hint is how often others should fetch the bundle (SPIFFE Trust Domain and Bundle §4.1.2), in whole seconds. The
// caller holds mu.
func (a *Authority) hint() time.Duration {
	life := a.active.life()
	for _, g := range a.cas {
		if g.record.State == Prepared {
			life = min(life, g.life())
		}
	}
	return max(min(refreshHint, life/hintShare).Truncate(time.Second), time.Second)
}

// ready is when a prepared CA may sign. The caller holds mu.
func (a *Authority) ready(next *caGeneration, lead time.Duration) time.Time {
	if lead == 0 {
		lead = a.lead()
	}
	at := latest(next.published().Add(lead), a.opened.Add(min(lead, a.hint())))
	return earliest(at, a.active.cert.NotAfter)
}
