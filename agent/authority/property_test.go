package authority_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/wardmesh/ward/agent/authority"
)

// TestAnyOrder: whatever is asked for, in whatever order, with restarts in between: what signs was published for the
// lead, what was issued is vouched for until it ends, and who waits for the bundle's changes misses none. Only force
// excepts, and only what it was used on.
func TestAnyOrder(t *testing.T) {
	base := memory(t)
	rapid.Check(t, func(r *rapid.T) {
		ctx := context.Background()
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			r.Fatal(err)
		}
		defer os.RemoveAll(dir)
		o, now := timed(filepath.Join(dir, "ca"))
		o.CATTL = time.Duration(rapid.SampledFrom([]int{1, 60, 60 * 24 * 30}).Draw(r, "ca minutes")) * time.Minute
		o.X509TTL = min(o.CATTL/6, authority.MaxX509TTL)
		a, err := authority.Open(ctx, o)
		if err != nil {
			r.Fatal(err)
		}
		defer func() { a.Close() }()

		type svid struct {
			cert *x509.Certificate
			ca   string
		}
		var issued []svid
		key := newKey(t)
		lead := a.Rotation().Lead
		since := make(map[string]time.Time) // in the bundle, by CA
		hurried := make(map[string]bool)    // CAs that force let sign, or whose predecessor had ended
		cut := make(map[string]bool)        // CAs that force took away
		var before []string
		sequence := uint64(0)

		look := func() {
			var names []string
			for _, c := range a.X509Bundle().X509Authorities() {
				names = append(names, string(c.SubjectKeyId))
				if _, ok := since[string(c.SubjectKeyId)]; !ok {
					since[string(c.SubjectKeyId)] = now.get()
				}
			}
			n, _ := a.Bundle().SequenceNumber()
			if same := slices.Equal(names, before); same != (n == sequence) || n < sequence {
				r.Fatalf("the bundle is the same: %v; its sequence went from %d to %d", same, sequence, n)
			}
			before, sequence = names, n
			for _, s := range issued {
				if now.get().Before(s.cert.NotAfter) && !cut[s.ca] && !verifies(a, s.cert, now.get()) {
					r.Fatalf("an SVID that is valid until %s is not vouched for: %v", s.cert.NotAfter, states(a))
				}
			}
		}
		look()
		step := func(f func(context.Context, authority.Order) error, o authority.Order) error {
			changed, old := a.BundleChanged(), sequence
			err := f(ctx, o)
			n, _ := a.Bundle().SequenceNumber()
			if err != nil && !errors.Is(err, authority.ErrTransition) {
				r.Fatal(err)
			}
			if done(changed) != (n != old) {
				r.Fatalf("the bundle has changed: %v; its channel says %v", n != old, done(changed))
			}
			return err
		}
		find := func(state authority.State) (ski string) {
			for _, g := range a.Rotation().Generations {
				if g.State == state {
					return string(g.SubjectKeyID)
				}
			}
			return ""
		}
		r.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { look() },
			"issue": func(r *rapid.T) {
				chain, err := a.IssueX509(ctx, authority.X509Request{ID: request(t, "/app/portal").ID, PublicKey: key.Public()})
				if errors.Is(err, authority.ErrExpired) {
					return
				}
				if err != nil {
					r.Fatal(err)
				}
				ca := string(chain[0].AuthorityKeyId)
				if ca != find(authority.Active) {
					r.Fatal("another CA than the active one signs")
				}
				if !hurried[ca] && !since[ca].Equal(begin) && now.get().Sub(since[ca]) < lead {
					r.Fatalf("a CA signs %s after it was published", now.get().Sub(since[ca]))
				}
				issued = append(issued, svid{chain[0], ca})
			},
			"wait": func(r *rapid.T) {
				now.forward(time.Duration(rapid.Int64Range(1, int64(o.CATTL/4)).Draw(r, "wait")))
			},
			"prepare": func(*rapid.T) { _ = step(a.Prepare, authority.Order{}) },
			"activate": func(r *rapid.T) {
				force := rapid.IntRange(0, 4).Draw(r, "force") == 0
				next, ended := find(authority.Prepared), !now.get().Before(a.Status().CANotAfter)
				if step(a.Activate, authority.Order{Force: force}) == nil && (force || ended) {
					hurried[next] = true
				}
			},
			"retire": func(r *rapid.T) {
				force := rapid.IntRange(0, 9).Draw(r, "force") == 0
				old := find(authority.Old)
				if step(a.Retire, authority.Order{Force: force}) == nil && force {
					cut[old] = true
				}
			},
			"restart": func(r *rapid.T) {
				if err := a.Close(); err != nil {
					r.Fatal(err)
				}
				if a, err = authority.Open(ctx, o); err != nil {
					r.Fatal(err)
				}
			},
		})
	})
}
