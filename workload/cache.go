package workload

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"
)

const (
	// lentTTL is the longest life of an SVID that the proxy uses on a process's behalf.
	lentTTL = 15 * time.Minute
	// Renewal comes at this share of an SVID's life, give or take a tenth of it.
	ownRenewal, lentRenewal = 1.0 / 2, 1.0 / 3
	spread                  = 0.1
	// A failing issuer is asked again after firstRetry, then after twice as long each time up to lastRetry.
	firstRetry, lastRetry = time.Second, time.Minute
	// maxSleep bounds how long a slot sleeps: the monotonic clock stands still while the host is suspended
	// and knows nothing of a corrected wall clock, in which certificates are dated. For the same reason every
	// time of a slot is without a monotonic reading, which comparisons would prefer.
	maxSleep = time.Minute
	// issueTimeout ends an attempt that the issuer does not answer.
	issueTimeout = 30 * time.Second
	// issueWidth is how many attempts run at once.
	issueWidth = 16
	// skew is how much longer than asked for the issuer may let a leaf live.
	skew = time.Minute
)

// cache holds one SVID for each entry in use, and a second one where it is lent. An SVID is issued when first
// demanded and renewed while somebody holds it. One that nobody holds stays until its renewal falls due, so
// that processes that come and go share it, and is then forgotten together with its key.
type cache struct {
	registry *Registry
	issuer   Issuer
	bundles  Bundles
	denials  Denials
	kept     Kept
	observer Observer
	log      *zap.Logger
	random   func() float64

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	width  chan struct{}

	mu     sync.Mutex
	closed bool
	slots  map[slotKey]*slot
	seen   <-chan struct{} // closed when the bundle is no longer the one that every SVID in a slot verifies with
}

// slotKey is everything of an entry that its SVID depends on: an edit of any of it is another SVID, and an
// edit of the rest (selectors, hint) is not.
type slotKey struct {
	name string
	id   spiffeid.ID
	dns  string
	ttl  time.Duration
	lent bool
}

func keyOf(e *Entry, lent bool) slotKey {
	return slotKey{name: e.Name, id: e.ID, dns: strings.Join(e.DNSNames, "\x00"), ttl: e.X509TTL, lent: lent}
}

// slot is the place of one SVID. All fields below key are guarded by the cache's mutex.
type slot struct {
	key     slotKey
	entry   *Entry
	svid    *SVID
	next    time.Time // when to issue next, by the wall clock
	err     error     // of the latest attempt
	fails   int       // attempts in a row that failed
	busy    bool      // an attempt is under way
	holders int
	changed chan struct{} // closed when svid or err changes
	timer   *time.Timer   // nil once the slot is dropped

	saving sync.Mutex // held while an SVID of the slot is put away; taken before the cache's
}

func newCache(o Options) *cache {
	ctx, cancel := context.WithCancel(context.Background())
	c := &cache{
		registry: o.Registry, issuer: o.Issuer, bundles: o.Bundles, denials: o.Denials, kept: o.Kept, observer: o.Observer, log: o.Log,
		random: o.Random, ctx: ctx, cancel: cancel, width: make(chan struct{}, issueWidth), slots: make(map[slotKey]*slot),
	}
	_, changed := c.look()
	c.tasks.Go(func() { c.follow(changed) })
	return c
}

// hold returns the slot of e, with one more holder. The first demand starts its issuance.
func (c *cache) hold(e *Entry, lent bool) *slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := keyOf(e, lent)
	s := c.slots[key]
	if s == nil {
		s = &slot{key: key, entry: e, changed: make(chan struct{})}
		c.slots[key] = s
		s.timer = time.AfterFunc(maxSleep, func() { c.wake(s) })
		c.issue(s)
	}
	s.entry = e
	s.holders++
	return s
}

// release gives back what hold returned. A slot whose entry is gone goes with its last holder.
func (c *cache) release(s *slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.holders--
	if s.holders == 0 && !c.current(s) {
		c.drop(s)
	}
}

// read returns the slot's valid SVID; or, when there is none, the reason, which is nil while no attempt has
// failed and one is under way. Changed is closed when the answer changes.
func (c *cache) read(s *slot) (svid *SVID, changed <-chan struct{}, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.svid != nil && time.Now().Before(s.svid.Certificates[0].NotAfter) {
		return s.svid, s.changed, nil
	}
	if s.svid != nil && s.timer != nil {
		s.timer.Reset(0) // expired while the timer slept: withdraw and renew it now
	}
	return nil, s.changed, s.err
}

// current reports whether the registry still holds the entry as the slot knows it.
func (c *cache) current(s *slot) bool {
	e := c.registry.entry(s.key.name)
	return e != nil && keyOf(e, s.key.lent) == s.key && (e.Proxy || !s.key.lent)
}

// wake does what has become due: forget, withdraw, issue.
func (c *cache) wake(s *slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.timer == nil || c.closed {
		return
	}
	now := time.Now()
	due := !now.Before(s.next) && !s.busy
	if s.svid != nil && now.Before(s.svid.Certificates[0].NotBefore) {
		due = !s.busy // the clock was set back: until it has caught up, nobody accepts this SVID
	}
	switch {
	case s.holders == 0 && (due || !c.current(s)):
		c.drop(s)
		return
	case s.svid != nil && !now.Before(s.svid.Certificates[0].NotAfter):
		s.svid = nil
		c.publish(s)
	}
	if due {
		c.issue(s)
	}
	c.arm(s)
}

// arm sets the timer to the next thing that can become due.
func (c *cache) arm(s *slot) {
	if s.timer == nil {
		return
	}
	now := time.Now()
	sleep := maxSleep
	if !s.busy {
		sleep = min(sleep, s.next.Sub(now))
	}
	if s.svid != nil {
		sleep = min(sleep, s.svid.Certificates[0].NotAfter.Sub(now))
	}
	s.timer.Reset(max(sleep, 0))
}

func (c *cache) publish(s *slot) {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (c *cache) drop(s *slot) {
	if s.timer == nil {
		return
	}
	s.timer.Stop()
	s.timer, s.svid = nil, nil
	if c.slots[s.key] == s {
		delete(c.slots, s.key)
	}
}

// issue starts an attempt in the background.
func (c *cache) issue(s *slot) {
	if c.closed {
		s.err = ErrClosed
		return
	}
	s.busy = true
	entry := s.entry
	c.tasks.Go(func() {
		start := time.Now()
		got, err := c.mint(entry, s.key)
		report := Issuance{Entry: entry, ID: s.key.id, Lent: s.key.lent, Took: time.Since(start), Err: err}
		if err == nil {
			leaf := got.svid.Certificates[0]
			report.Serial, report.NotAfter = leaf.SerialNumber.Text(16), leaf.NotAfter
		}
		if c.ctx.Err() == nil {
			c.observer.Issued(report)
		}
		var instead minted
		if err != nil && c.lacks(s) {
			instead = c.keptFor(entry, s.key)
		}
		c.settle(s, got, instead, err)
		if err == nil {
			c.save(s, got.svid)
		}
	})
}

// settle takes the result of an attempt: what it got, or why it got nothing and what was kept.
func (c *cache) settle(s *slot, got, instead minted, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.timer == nil {
		return // dropped meanwhile: the key is forgotten unused
	}
	now := time.Now().Round(0) // see maxSleep
	s.busy, s.err = false, err
	if err == nil && c.recheck(got, s.key, now) != nil {
		c.issue(s) // it was signed by a CA that has left the bundle meanwhile
		return
	}
	if err == nil {
		share := ownRenewal
		if s.key.lent {
			share = lentRenewal
		}
		life := got.svid.Certificates[0].NotAfter.Sub(now)
		s.fails, s.svid = 0, got.svid
		s.next = now.Add(c.around(time.Duration(float64(life) * share)))
		c.publish(s)
	} else {
		s.next = now.Add(c.around(min(firstRetry<<min(s.fails, 10), lastRetry)))
		s.fails++
		if s.svid == nil && instead.svid != nil && c.recheck(instead, s.key, now) == nil {
			s.svid = instead.svid
			c.log.Info("an SVID from before the start serves until one is issued", zap.String("entry", s.key.name), zap.Stringer("id", s.key.id),
				zap.Bool("lent", s.key.lent), zap.Time("not_after", s.svid.Certificates[0].NotAfter))
			c.publish(s)
		} else if s.svid == nil {
			c.publish(s) // those who wait for the first SVID learn why there is none
		}
		if c.ctx.Err() == nil {
			c.log.Warn("an SVID was not issued", zap.String("entry", s.key.name), zap.Stringer("id", s.key.id), zap.Bool("lent", s.key.lent),
				zap.Int("attempts", s.fails), zap.Time("next", s.next), zap.Error(err))
		}
	}
	c.arm(s)
}

// around spreads d, so that what was issued together is not renewed together.
func (c *cache) around(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - spread + 2*spread*c.random()))
}

// mint makes a key, has it certified, and believes the certificate only after checking it.
func (c *cache) mint(e *Entry, key slotKey) (minted, error) {
	select {
	case c.width <- struct{}{}:
		defer func() { <-c.width }()
	case <-c.ctx.Done():
		return minted{}, ErrClosed
	}
	ctx, cancel := context.WithTimeout(c.ctx, issueTimeout)
	defer cancel()
	if c.denials.Denied(key.id) {
		return minted{}, ErrDenied
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return minted{}, err
	}
	ttl := key.ttl
	if key.lent && (ttl == 0 || ttl > lentTTL) {
		ttl = lentTTL
	}
	chain, err := c.issuer.IssueX509(ctx, X509Request{
		ID: key.id, PublicKey: private.Public(), DNSNames: slices.Clone(e.DNSNames), TTL: ttl,
	})
	if err != nil {
		return minted{}, fmt.Errorf("the issuer: %w", err)
	}
	bundle, changed := c.bundles.X509Bundle()
	now := time.Now()
	if err := VerifyX509(chain, key.id, private.Public(), bundle, now); err != nil {
		return minted{}, fmt.Errorf("the issuer returned something that is no SVID for this entry: %w", err)
	}
	if ttl > 0 && chain[0].NotAfter.After(now.Add(ttl+skew)) {
		return minted{}, fmt.Errorf("the issuer returned an SVID that ends at %s, later than the %s that were asked for", chain[0].NotAfter.Format(time.RFC3339), ttl)
	}
	svid, err := complete(e, &x509svid.SVID{ID: key.id, Certificates: chain, PrivateKey: private})
	return minted{svid, changed}, err
}

// close ends every attempt and forgets every key.
func (c *cache) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.tasks.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.slots {
		c.drop(s)
	}
}

// Status is the state of one SVID in use.
type Status struct {
	Entry    string
	ID       spiffeid.ID
	Lent     bool      // for the proxy, on the process's behalf
	Serial   string    // hexadecimal; "" while there is none
	NotAfter time.Time // zero while there is none
	Renewal  time.Time // when it is issued again, if it is held then
	Failures int       // attempts in a row that failed
	LastErr  error     // of the latest attempt; nil when it succeeded
	Holders  int       // streams and holdings; 0 means that it is kept for the next comer
}

func (c *cache) status() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Status, 0, len(c.slots))
	for _, s := range c.slots {
		if s.holders == 0 && !c.current(s) {
			continue
		}
		st := Status{Entry: s.key.name, ID: s.key.id, Lent: s.key.lent, Renewal: s.next, Failures: s.fails, LastErr: s.err, Holders: s.holders}
		if s.svid != nil {
			leaf := s.svid.Certificates[0]
			st.Serial, st.NotAfter = leaf.SerialNumber.Text(16), leaf.NotAfter
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Status) int {
		lent := func(s Status) int {
			if s.Lent {
				return 1
			}
			return 0
		}
		return cmp.Or(strings.Compare(a.Entry, b.Entry), cmp.Compare(lent(a), lent(b)), strings.Compare(a.ID.String(), b.ID.String()))
	})
	return out
}
