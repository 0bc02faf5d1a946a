package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

const (
	// demandWait is the longest that a call waits for newer keys, and the longest, counted from when it was wanted, that
	// a reading is waited for. An issuer that hangs therefore holds up only the calls of its first two seconds.
	demandWait = 2 * time.Second
	// floor lies at least between the end of a reading and the start of one that is made because a key is unknown.
	floor = time.Second
	// demandBurst is how many such readings may follow each other before each has to be earned by a cool-down.
	demandBurst = 3
	// Between failed attempts the pause doubles from firstRetry to lastRetry.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// leastFresh is how soon the keys are read again at the earliest, however short the issuer says that they are fresh.
	leastFresh = time.Minute
)

// keyring keeps one issuer's keys.
//
// One goroutine does all the reading, so an issuer never gets two requests at a time from here. It reads at each
// interval, a little before the answer's max-age ends, after failures, and when a token names an unknown key: an
// issuer that has just begun to use a new key has no call refused for it. The call waits for that reading.
//
// Whoever can call can name unknown keys without end, so readings on demand have a budget: a burst, and then one for
// each cool-down. They are spent only for a token whose claims would be accepted, so that an old token that is tried
// again and again spends none. A flood costs the issuer one reading per cool-down, and the callers of known keys nothing.
//
// That a key is unknown is certain (401) only when a reading that began after the call did has not brought it. Where
// no such reading could be had, the token may be as good as any, and the answer is that it cannot be checked for
// the moment (503): an honest caller keeps its token and comes back. To others this tells that an issuer is configured
// here and that somebody asks for unknown keys, both of which they know: a service's metadata name its issuers.
//
// While the issuer is away the last keys serve on, until they are too old to be believed. A key that the issuer no
// longer publishes ends with the reading that tells so, and every remembered token that it signed with it.
type keyring struct {
	issuer *issuer
	source source
	clock  func() time.Time
	log    *zap.Logger
	gone   func() // told when a key is no longer published

	current atomic.Pointer[keySet] // nil before the first reading
	begun   atomic.Uint64          // readings so far, with the one under way
	wake    chan struct{}

	mu      sync.Mutex
	next    *reading  // the reading that is wanted or under way; nil when there is none
	last    *reading  // the one that ended last; nil before the first
	ended   time.Time // when the last reading ended
	earned  time.Time // readings on demand are paid for up to here
	lastErr error     // of the last reading
	notes   string    // what was last said about unusable keys

	good, bad prometheus.Counter
}

// reading is one reading of the keys, from when it is wanted.
type reading struct {
	wanted time.Time
	done   chan struct{} // closed when it has ended
	err    error         // how; valid once done is closed
}

func newKeyring(is *issuer, src source, o Options) (*keyring, error) {
	k := &keyring{
		issuer: is,
		source: src,
		clock:  o.Clock,
		log:    o.Logger.With(zap.String("issuer", is.Issuer.Issuer)),
		gone:   func() {},
		wake:   make(chan struct{}, 1),
	}
	if _, local := src.(file); local {
		// A file costs nothing to read, and a wrong one is a mistake to be told of at once.
		if _, err := k.load(context.Background(), 0); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// inherit takes over the keys that before has, if they are the ones that would be read. They keep their age.
func (is *issuer) inherit(before *issuer) {
	if before == nil || is.keys.current.Load() != nil || is.Discovery != before.Discovery || is.JWKSURI != before.JWKSURI ||
		is.JWKSFile != before.JWKSFile || !is.RootCAs.Equal(before.RootCAs) || !slices.Equal(is.algorithms, before.algorithms) {
		return
	}
	if set := before.keys.current.Load(); set != nil {
		taken := *set
		taken.reading = 0 // none of this keyring's
		is.keys.current.Store(&taken)
	}
}

// find returns the key that a token asks for and that signed it, as proves tells. It waits, at most for demandWait, only
// when the key is unknown, newer keys can be had, and worthwhile says that the token would be accepted otherwise.
func (k *keyring) find(ctx context.Context, h header, proves func(*key) error, worthwhile func() error) (*key, error) {
	since := k.begun.Load()
	var patience context.Context
	for {
		seen := k.current.Load()
		set, found, err := k.lookup(h, proves)
		switch {
		case err == nil:
			return found, nil
		case !newerMayHelp(err):
			return nil, err
		case set != nil && set.reading > since:
			return nil, settle(err) // it was asked for after the call had come
		}
		if patience == nil {
			if werr := worthwhile(); werr != nil {
				// What the claims say is not told: they are nobody's yet.
				return nil, proxy.Refuse(proxy.CauseTokenSignature, "%v, and newer keys would not help: %v", err, werr)
			}
			var cancel context.CancelFunc
			patience, cancel = context.WithTimeout(ctx, demandWait)
			defer cancel()
		}
		if werr := k.await(patience, since, seen); werr != nil {
			return nil, proxy.Refuse(proxy.CauseIssuerDown, "%v, and %w", err, werr)
		}
	}
}

func (k *keyring) lookup(h header, proves func(*key) error) (*keySet, *key, error) {
	set, err := k.usable()
	if err != nil {
		return nil, nil, err
	}
	found, err := set.find(h)
	if err != nil {
		return set, nil, err
	}
	if err := proves(found); err != nil {
		if h.kid == "" && cause(err) == proxy.CauseTokenSignature {
			// It names no key, so it may have been signed with one that is not known yet.
			err = errUnknownKey("no key that made its signature, and it names none")
		}
		return set, nil, err
	}
	return set, found, nil
}

// usable returns the keys, if there are any that may still be believed.
func (k *keyring) usable() (*keySet, error) {
	set := k.current.Load()
	if set == nil {
		return nil, proxy.Refuse(proxy.CauseIssuerDown, "no keys have been had from the issuer yet")
	}
	if age := k.clock().Sub(set.read); age > k.issuer.MaxKeyAge {
		return nil, proxy.Refuse(proxy.CauseIssuerDown, "the issuer's keys were last had %s ago; they serve for %s",
			age.Truncate(time.Second), k.issuer.MaxKeyAge)
	}
	return set, nil
}

// holds reports whether a key is still one of the issuer's.
func (k *keyring) holds(id [sha256.Size]byte) bool {
	set, err := k.usable()
	return err == nil && set.holds(id)
}

func newerMayHelp(err error) bool {
	var unknown errUnknownKey
	return errors.As(err, &unknown) || cause(err) == proxy.CauseIssuerDown
}

// settle makes a refusal of an error that no newer keys have lifted.
func settle(err error) error {
	var unknown errUnknownKey
	if errors.As(err, &unknown) {
		return proxy.Refuse(proxy.CauseTokenSignature, "%w", unknown)
	}
	return err
}

// await asks for keys that were read after reading since, or are others than set, and waits for them; the error says why
// they were not to be had.
func (k *keyring) await(ctx context.Context, since uint64, set *keySet) error {
	r, left := k.demand(since, set)
	switch {
	case r == nil:
		return errors.New("newer ones were asked for too often of late")
	case left <= 0:
		return errors.New("the issuer is slow to tell newer ones")
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-r.done:
		if r.err != nil {
			return fmt.Errorf("newer ones cannot be read: %w", r.err)
		}
		return nil
	case <-t.C:
	case <-ctx.Done():
	}
	return errors.New("newer ones did not come in time")
}

// demand asks for a reading later than since, joins the one that is wanted already, or gives the one that has ended
// since set was looked into, and says how long that may be waited for. It gives nil when the budget is spent.
func (k *keyring) demand(since uint64, set *keySet) (*reading, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	if k.next == nil {
		if k.last != nil && (k.begun.Load() > since || k.current.Load() != set) {
			return k.last, demandWait
		}
		// A bucket of demandBurst readings that fills by one each cool-down, told by when it would be full.
		full := k.earned
		if full.Before(now) {
			full = now
		}
		if full.Sub(now) > (demandBurst-1)*k.issuer.CoolDown {
			return nil, 0
		}
		k.earned = full.Add(k.issuer.CoolDown)
		k.next = &reading{wanted: now, done: make(chan struct{})}
		select {
		case k.wake <- struct{}{}:
		default: // it is awake already
		}
	}
	return k.next, demandWait - now.Sub(k.next.wanted)
}

// run reads the keys whenever they are due or wanted, until ctx ends.
func (k *keyring) run(ctx context.Context) {
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.wake:
			if !k.rest(ctx) {
				return
			}
		}
		n := k.begin()
		loading, cancel := context.WithTimeout(ctx, fetchTimeout)
		fresh, err := k.load(loading, n)
		cancel()
		k.end(err)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
			k.good.Inc()
			timer.Reset(k.until(fresh))
			continue
		}
		k.bad.Inc()
		k.log.Warn("cannot read the issuer's keys; the last ones serve on", zap.Error(err), zap.Int("failures", failures+1))
		pause := min(firstRetry<<min(failures, 6), lastRetry, k.issuer.Refresh)
		failures++
		timer.Reset(pause - rand.N(pause/4+1))
	}
}

// until is how long the keys may go unread that the issuer calls fresh for so long (0: it does not say).
func (k *keyring) until(fresh time.Duration) time.Duration {
	pause := k.issuer.Refresh
	if fresh > 0 {
		pause = min(pause, max(fresh, leastFresh))
	}
	// A little early rather than late: both are promises.
	return pause - rand.N(pause/10+1)
}

// rest lets the floor pass; false means that ctx has ended.
func (k *keyring) rest(ctx context.Context) bool {
	k.mu.Lock()
	pause := min(k.ended.Add(floor).Sub(k.clock()), floor)
	k.mu.Unlock()
	if pause <= 0 {
		return true
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// begin marks a reading as under way, so that demands join it, and numbers it.
func (k *keyring) begin() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next == nil {
		k.next = &reading{wanted: k.clock(), done: make(chan struct{})}
	}
	select {
	case <-k.wake: // this reading is the one that was wanted
	default:
	}
	return k.begun.Add(1)
}

func (k *keyring) end(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next.err = err
	close(k.next.done)
	k.last, k.next, k.lastErr, k.ended = k.next, nil, err, k.clock()
}

// load reads the keys once, as reading n, and says for how long the issuer calls them fresh.
func (k *keyring) load(ctx context.Context, n uint64) (fresh time.Duration, err error) {
	began := k.clock() // the keys are at least as old as the question
	b, fresh, err := k.source.fetch(ctx)
	if err != nil {
		return 0, err
	}
	set, notes, err := parseKeySet(b, k.issuer.algorithms)
	if err != nil {
		return 0, err
	}
	set.read = began.Round(0) // by the wall clock, so that a host's sleep counts towards the keys' age
	set.reading = n
	before := k.current.Swap(set)
	k.mu.Lock()
	said := k.notes
	k.notes = strings.Join(notes, "; ")
	k.mu.Unlock()
	if len(notes) > 0 && said != strings.Join(notes, "; ") {
		k.log.Warn("the issuer publishes keys that cannot be used", zap.Strings("keys", notes))
	}
	switch {
	case len(set.keys) == 0 && (before == nil || len(before.keys) > 0):
		k.log.Warn("the issuer publishes no key that can be used: its tokens are refused")
	case before == nil || !sameKeys(before, set):
		k.log.Info("the issuer's keys have been read", zap.Int("keys", len(set.keys)))
	}
	if before != nil && slices.ContainsFunc(before.keys, func(old key) bool { return !set.holds(old.id) }) {
		k.gone()
	}
	return fresh, nil
}

func sameKeys(a, b *keySet) bool {
	if len(a.keys) != len(b.keys) {
		return false
	}
	for i := range b.keys {
		if !a.holds(b.keys[i].id) {
			return false
		}
	}
	return true
}

func (k *keyring) status(name string) IssuerStatus {
	s := IssuerStatus{Issuer: name}
	if set := k.current.Load(); set != nil {
		s.Read = set.read
	}
	if set, err := k.usable(); err == nil {
		s.Keys = len(set.keys)
	}
	k.mu.Lock()
	s.Err = k.lastErr
	k.mu.Unlock()
	return s
}
