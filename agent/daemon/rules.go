package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy/bind"
	"github.com/wardmesh/ward/proxy/policy"
	"github.com/wardmesh/ward/proxy/token"
)

// rules is what decides calls, as one state of config says it. A call meets one set of rules from beginning to end.
type rules struct {
	policies *policy.Set
	tokens   *token.Verifier
	bindings *bind.Map

	issuers []token.Issuer // of tokens
	metrics *registration
	reading *reading
}

// reading is the work of a verifier: it fetches the issuers' keys from start on, until it is stopped.
type reading struct {
	started bool
	stop    context.CancelFunc
}

// newRules loads what cfg names. The verifier of before is used on when its issuers are the same: it knows their keys.
func (d *Daemon) newRules(cfg *config.Config, before *rules) (_ *rules, err error) {
	r := &rules{}
	if !serves(cfg) {
		return r, nil
	}
	if r.policies, err = policy.Load(cfg.Policies.Dir); err != nil {
		return nil, fmt.Errorf("policies: %w", err)
	}
	if err := keepPolicies(policyStore(cfg, d.o.Role), r.policies); err != nil {
		return nil, err
	}
	if r.bindings, err = newBindings(cfg); err != nil {
		return nil, err
	}
	if r.issuers, err = issuers(cfg); err != nil {
		return nil, err
	}
	var old *token.Verifier
	if before != nil && before.tokens != nil {
		if slices.EqualFunc(before.issuers, r.issuers, sameIssuer) {
			r.tokens, r.metrics, r.reading = before.tokens, before.metrics, before.reading
			return r, nil
		}
		old = before.tokens
	}
	r.metrics, r.reading = &registration{to: d.registry}, &reading{}
	r.tokens, err = token.New(token.Options{Issuers: r.issuers, Logger: d.log.Named("token"), Registerer: r.metrics, Before: old})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.At("tokens"), err)
	}
	return r, nil
}

// sameIssuer compares pools of certificates by what is in them.
func sameIssuer(a, b token.Issuer) bool {
	if !a.RootCAs.Equal(b.RootCAs) {
		return false
	}
	a.RootCAs, b.RootCAs = nil, nil
	return reflect.DeepEqual(a, b)
}

// start lets the verifier fetch keys and show its metrics, once. Whoever has shown the same metrics has retired.
func (r *rules) start(ctx context.Context, g *errgroup.Group) {
	if r.tokens == nil || r.reading.started {
		return
	}
	ctx, r.reading.stop = context.WithCancel(ctx)
	r.reading.started = true
	r.metrics.commit()
	g.Go(func() error { return r.tokens.Run(ctx) })
}

// closing is how long calls that began under rules that are replaced may take to come to the look at their tokens. It
// is their first step after their request's head has been read.
const closing = 10 * time.Second

// retire gives up what next does not use any more. The verifier reads no keys from now on; the calls that began under r
// may still ask it for a while, and then, or when ctx ends, it is closed.
func (r *rules) retire(ctx context.Context, g *errgroup.Group, next *rules) {
	if r.tokens == nil || r.tokens == next.tokens {
		return
	}
	r.metrics.withdraw()
	if r.reading.started {
		r.reading.stop()
	}
	g.Go(func() error {
		wait := time.NewTimer(closing)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
		return r.tokens.Close()
	})
}

// discard closes what was loaded in vain, and leaves what it shares with those that hold.
func (r *rules) discard(holding *rules) {
	if r.tokens != nil && r.tokens != holding.tokens {
		_ = r.tokens.Close()
	}
}

// hash names the policies; "" where none are needed.
func (r *rules) hash() string {
	if r.policies == nil {
		return ""
	}
	return r.policies.Hash()
}

func (r *rules) close() {
	if r.tokens != nil {
		_ = r.tokens.Close()
	}
}

func serves(cfg *config.Config) bool {
	for _, s := range cfg.Services {
		if s.Listen.IsValid() {
			return true
		}
	}
	return false
}

// keepPolicies writes the set into the store, unless it is there.
func keepPolicies(store string, set *policy.Set) error {
	dir := filepath.Join(store, set.Hash())
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	tmp := dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700)); err != nil {
		return fmt.Errorf("policy store: %w", err)
	}
	for _, f := range set.Source() {
		if err := os.WriteFile(filepath.Join(tmp, filepath.Base(f.Name)), f.Content, 0o600); err != nil {
			return fmt.Errorf("policy store: %w", err)
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("policy store: %w", err)
	}
	return nil
}

// registration holds collectors back until what they belong to takes the place of its predecessor, which has the same
// metrics.
type registration struct {
	to prometheus.Registerer

	mu   sync.Mutex
	held []prometheus.Collector
	live bool
}

// Register implements prometheus.Registerer.
func (r *registration) Register(c prometheus.Collector) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = append(r.held, c)
	if r.live {
		return r.to.Register(c)
	}
	return nil
}

// MustRegister implements prometheus.Registerer.
func (r *registration) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister implements prometheus.Registerer.
func (r *registration) Unregister(c prometheus.Collector) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live && r.to.Unregister(c)
}

func (r *registration) commit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = true
	for _, c := range r.held {
		r.to.MustRegister(c)
	}
}

func (r *registration) withdraw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = false
	for _, c := range r.held {
		r.to.Unregister(c)
	}
}
