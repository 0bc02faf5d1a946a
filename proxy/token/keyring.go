package token

import (
	"context"
	"crypto/sha256"
	"errors"
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
	// demandWait is the longest that a call waits for newer keys, counted from when their reading began. An
	// issuer that hangs therefore holds up only the calls of its first second.
	demandWait = time.Second
	// Between failed attempts the pause doubles from firstRetry to lastRetry.
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// keyring keeps one issuer's keys.
//
// One goroutine does all the reading, so an issuer never gets two requests at a time from here. It reads at
// each interval, after failures, and when a token names an unknown key: but not again before the cool-down
// has passed. A flood of tokens with invented key ids thus costs the issuer one reading per cool-down, and the
// callers of known keys nothing; the price is that a new key may go unnoticed for as long as that.
//
// While the issuer is away the last keys serve on, until they are too old to be believed.
type keyring struct {
	issuer *issuer
	source source
	clock  func() time.Time
	log    *zap.Logger

	current atomic.Pointer[keySet] // nil before the first reading
	wake    chan struct{}

	mu      sync.Mutex
	done    chan struct{} // closed when the reading that is wanted or under way ends; nil when there is none
	began   time.Time     // when that reading was wanted
	rested  time.Time     // a demand before this time is not heard
	lastErr error         // of the last reading
	notes   string        // what was last said about unusable keys

	good, bad prometheus.Counter
}

func newKeyring(is *issuer, src source, o Options) (*keyring, error) {
	k := &keyring{
		issuer: is,
		source: src,
		clock:  o.Clock,
		log:    o.Logger.With(zap.String("issuer", is.Issuer.Issuer)),
		wake:   make(chan struct{}, 1),
	}
	if _, local := src.(file); local {
		// A file costs nothing to read, and a wrong one is a mistake to be told of at once.
		if err := k.load(context.Background()); err != nil {
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
	is.keys.current.Store(before.keys.current.Load())
}

// find returns the key that a token asks for. It waits, at most for demandWait, only when the key is unknown and newer
// keys are on their way.
func (k *keyring) find(ctx context.Context, h header) (*key, error) {
	found, err := k.lookup(h)
	if err == nil || !newerMayHelp(err) || !k.await(ctx) {
		return found, settle(err)
	}
	found, err = k.lookup(h)
	return found, settle(err)
}

func (k *keyring) lookup(h header) (*key, error) {
	set, err := k.usable()
	if err != nil {
		return nil, err
	}
	return set.find(h)
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

// await asks for newer keys and waits for them; false means that there was nothing to wait for.
func (k *keyring) await(ctx context.Context) bool {
	done, left := k.demand()
	if done == nil {
		return false
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// demand asks for a reading. It returns nil when none may be had so soon, or when the one under way has been
// waited for long enough.
func (k *keyring) demand() (<-chan struct{}, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	if k.done == nil {
		if now.Before(k.rested) {
			return nil, 0
		}
		k.done, k.began = make(chan struct{}), now
		select {
		case k.wake <- struct{}{}:
		default: // it is awake already
		}
	}
	left := demandWait - now.Sub(k.began)
	if left <= 0 {
		return nil, 0
	}
	return k.done, left
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
		}
		k.begin()
		loading, cancel := context.WithTimeout(ctx, fetchTimeout)
		err := k.load(loading)
		cancel()
		k.end(err)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
			k.good.Inc()
			// A little early rather than late: Refresh is a promise.
			timer.Reset(k.issuer.Refresh - rand.N(k.issuer.Refresh/10+1))
			continue
		}
		k.bad.Inc()
		k.log.Warn("cannot read the issuer's keys; the last ones serve on", zap.Error(err), zap.Int("failures", failures+1))
		pause := min(firstRetry<<min(failures, 6), lastRetry, k.issuer.Refresh)
		failures++
		timer.Reset(pause - rand.N(pause/4+1))
	}
}

// begin marks a reading as under way, so that demands join it.
func (k *keyring) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done == nil {
		k.done, k.began = make(chan struct{}), k.clock()
	}
	select {
	case <-k.wake: // this reading is the one that was wanted
	default:
	}
}

func (k *keyring) end(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.done)
	k.done, k.lastErr, k.rested = nil, err, k.clock().Add(k.issuer.CoolDown)
}

// load reads the keys once.
func (k *keyring) load(ctx context.Context) error {
	began := k.clock() // the keys are at least as old as the question
	b, err := k.source.fetch(ctx)
	if err != nil {
		return err
	}
	set, notes, err := parseKeySet(b, k.issuer.algorithms)
	if err != nil {
		return err
	}
	set.read = began.Round(0) // by the wall clock, so that a host's sleep counts towards the keys' age
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
	return nil
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
