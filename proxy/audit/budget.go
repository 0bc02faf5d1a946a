package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// BudgetOptions says how many refusals are recorded one by one. Log, Logger and Registerer must be given.
type BudgetOptions struct {
	Log proxy.Recorder

	PerMinute int // refusals of one identity or source that are recorded one by one in a window; 60
	// Total is the same for all identities together, and once more for all sources without one; 5 × PerMinute.
	Total int
	// Identities and Sources are how many are counted apart in a window; those beyond share one count. 4096 and 1024.
	Identities, Sources int
	// Summaries is how many summaries a window writes at most for each kind; those with the fewest refusals
	// share the last one. 32.
	Summaries int

	Window time.Duration    // 1 min
	Now    func() time.Time // nil: the host's clock

	Logger     *zap.Logger
	Registerer prometheus.Registerer
}

// Budget keeps refusals from eating the space that allowed calls need. In each window it passes the first refusals of
// an identity on to the log, one by one; the rest it counts, and writes as summaries (Folded) when the window ends
// and at Close. Whatever is not a refusal passes untouched.
//
// An identity is the verified caller; a call without one is counted by its process's uid, or else by its remote
// address (an IPv6 one by its /64). The number of each is bounded, so that addresses that cost nothing cannot grow
// memory, and the two are counted apart, so that they cannot take the room of the verified. Refused calls whose
// verified purpose is break-glass have a budget of their own, beside that of the same identity's other calls.
//
// No count is lost: what the log cannot take, because it is full or has failed, is counted and written once it can.
// A kill of the process loses the counts of the current window, at most one minute by default, and no more.
type Budget struct {
	o       BudgetOptions
	folded  prometheus.Counter
	total   atomic.Int64 // what folded counts
	pending prometheus.Gauge

	mu     sync.Mutex
	closed bool
	window *time.Timer // ends the current window; armed by its first refusal
	armed  bool
	kinds  [kinds]kind

	writing sync.Mutex // one window is written at a time
}

var _ proxy.Recorder = (*Budget)(nil)

// The kinds of whoever is refused. Each has a budget of its own.
const (
	verified = iota
	source
	glass // breaks of glass, by verified callers
	kinds
)

// kind is a window's counts of one kind.
type kind struct {
	most    int // keys that are counted apart
	singles int // refusals that were recorded one by one
	keys    map[whom]*tally
}

// whom is what refusals are counted by. The zero value is for those that are not counted apart.
type whom struct{ caller, process, remote string }

func (w whom) String() string { return firstOf(w.caller, w.process, w.remote) }

// tally is what a window knows of one identity or source.
type tally struct {
	singles int // recorded one by one
	fold    fold
}

// NewBudget makes a Budget before o.Log, which must stay open until the Budget is closed.
func NewBudget(o BudgetOptions) (*Budget, error) {
	switch {
	case o.Log == nil || o.Logger == nil || o.Registerer == nil:
		return nil, errors.New("audit: BudgetOptions.Log, Logger and Registerer must be given")
	case o.PerMinute < 0 || o.Total < 0 || o.Identities < 0 || o.Sources < 0 || o.Summaries < 0 || o.Window < 0:
		return nil, errors.New("audit: BudgetOptions has a negative number or duration")
	}
	setDefault(&o.PerMinute, 60)
	setDefault(&o.Total, 5*o.PerMinute)
	setDefault(&o.Identities, 4096)
	setDefault(&o.Sources, 1024)
	setDefault(&o.Summaries, 32)
	setDefault(&o.Window, time.Minute)
	if o.Now == nil {
		o.Now = time.Now
	}
	b := &Budget{o: o,
		folded: prometheus.NewCounter(prometheus.CounterOpts{Name: "ward_audit_refusals_folded_total",
			Help: "Refusals that were counted into a summary of the audit log instead of a record of their own."}),
		pending: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ward_audit_refusals_pending",
			Help: "Refusals that were counted and wait for their summary to be written to the audit log."})}
	for i, most := range []int{o.Identities, o.Sources, o.Identities} {
		b.kinds[i] = kind{most: most, keys: map[whom]*tally{}}
	}
	for i, c := range []prometheus.Collector{b.folded, b.pending} {
		if err := o.Registerer.Register(c); err != nil {
			if i > 0 {
				o.Registerer.Unregister(b.folded)
			}
			return nil, fmt.Errorf("audit: %w", err)
		}
	}
	return b, nil
}

// Append implements proxy.Recorder. The Receipt of a refusal that is counted is fulfilled at once.
func (b *Budget) Append(r *proxy.Record) (proxy.Receipt, error) {
	if r.Stage != proxy.StageRefusal {
		return b.o.Log.Append(r)
	}
	k, w := whose(r)
	at := r.Time
	if at.IsZero() {
		at = b.o.Now()
	}
	single, err := b.count(k, w, r.Cause, at)
	switch {
	case err != nil:
		return nil, err
	case !single:
		return counted{}, nil
	}
	receipt, err := b.o.Log.Append(r)
	if errors.Is(err, ErrRecord) {
		return nil, err
	}
	if err != nil {
		b.fold(k, w, r.Cause, at)
		return counted{}, nil
	}
	return &passed{Receipt: receipt, budget: b, kind: k, whom: w, cause: r.Cause, at: at}, nil
}

// count takes a refusal into the window, and says whether it is to be recorded by itself.
func (b *Budget) count(k int, w whom, cause proxy.Cause, at time.Time) (single bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false, ErrClosed
	}
	b.arm()
	t := b.kinds[k].tally(w)
	if t.singles < b.o.PerMinute && b.kinds[k].singles < b.o.Total {
		t.singles++
		b.kinds[k].singles++
		return true, nil
	}
	b.add(t, cause, at)
	return false, nil
}

// fold counts a refusal that the log did not take.
func (b *Budget) fold(k int, w whom, cause proxy.Cause, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arm()
	b.add(b.kinds[k].tally(w), cause, at)
}

func (b *Budget) add(t *tally, cause proxy.Cause, at time.Time) {
	t.fold.add(cause, at)
	b.total.Add(1)
	b.folded.Inc()
	b.pending.Inc()
}

// arm lets a window begin.
func (b *Budget) arm() {
	if b.armed || b.closed {
		return
	}
	b.armed = true
	if b.window == nil {
		b.window = time.AfterFunc(b.o.Window, b.end)
	} else {
		b.window.Reset(b.o.Window)
	}
}

// tally finds w's, or the one that those share for whom there is no room.
func (k *kind) tally(w whom) *tally {
	t := k.keys[w]
	if t == nil && len(k.keys) >= k.most {
		w = whom{}
		t = k.keys[w]
	}
	if t == nil {
		t = &tally{}
		k.keys[w] = t
	}
	return t
}

// counted is the Receipt of a refusal that was counted.
type counted struct{}

func (counted) Wait(context.Context) error { return nil }

// passed is the Receipt of a refusal on its way to the log. Should the log turn it away after all, it is counted.
type passed struct {
	proxy.Receipt
	budget *Budget
	kind   int
	whom   whom
	cause  proxy.Cause
	at     time.Time
	once   atomic.Bool
}

func (p *passed) Wait(ctx context.Context) error {
	err := p.Receipt.Wait(ctx)
	if !errors.Is(err, ErrFull) && !errors.Is(err, ErrFailed) {
		return err
	}
	if !p.once.Swap(true) {
		p.budget.fold(p.kind, p.whom, p.cause, p.at)
	}
	return nil
}

// end ends a window.
func (b *Budget) end() {
	if err := b.write(context.Background()); err != nil {
		b.o.Logger.Warn("counted refusals wait to be written to the audit log", zap.Error(err))
	}
}

// write begins a new window and writes the summaries of the one before. What the log does not take is counted into the
// new one.
func (b *Budget) write(ctx context.Context) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	var ended [kinds]map[whom]*tally
	for i := range b.kinds {
		ended[i] = b.kinds[i].keys
		b.kinds[i].keys, b.kinds[i].singles = map[whom]*tally{}, 0
	}
	b.armed = false
	b.mu.Unlock()
	var failed error
	for i, keys := range ended {
		for _, s := range summaries(keys, b.o.Summaries) {
			err := b.summary(ctx, i, s)
			if err == nil {
				b.pending.Sub(float64(s.fold.Count))
				continue
			}
			failed = errors.Join(failed, err)
			b.mu.Lock()
			b.arm()
			b.kinds[i].tally(s.whom).fold.join(&s.fold)
			b.mu.Unlock()
		}
	}
	return failed
}

// summary writes one summary and waits until it is durable.
func (b *Budget) summary(ctx context.Context, k int, s summary) error {
	receipt, err := b.o.Log.Append(s.record(k, b.o.Now()))
	if err != nil {
		return err
	}
	return receipt.Wait(ctx)
}

// Folded is how many refusals were counted in summaries instead of being recorded one by one, since the start.
func (b *Budget) Folded() int64 { return b.total.Load() }

// Close writes what was counted, and ends the Budget; the log stays open. The error says that counts could not be
// written and are lost. Appending a refusal after Close is an ErrClosed.
func (b *Budget) Close() error {
	b.mu.Lock()
	first := !b.closed
	b.closed = true
	if b.window != nil {
		b.window.Stop()
	}
	b.mu.Unlock()
	if !first {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	err := b.write(ctx)
	b.o.Registerer.Unregister(b.folded)
	b.o.Registerer.Unregister(b.pending)
	if err != nil {
		return fmt.Errorf("audit: counted refusals are lost: %w", err)
	}
	return nil
}

// closePatience bounds how long Close waits for a disk that does not answer.
const closePatience = 10 * time.Second
