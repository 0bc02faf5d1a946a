package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/proxy"
)

// journey is a daemon whose events the test sees.
type journey struct {
	cfg  *config.Config
	stop func()

	mu     sync.Mutex
	events []*proxy.Record
	more   chan struct{}
}

// begin starts a daemon for one test; began is when, before anything was opened.
func begin(t *testing.T, file string) (j *journey, began time.Time) {
	t.Helper()
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	j = &journey{cfg: cfg, more: make(chan struct{})}
	ready := make(chan struct{})
	began = time.Now()
	d, err := daemon.New(t.Context(), cfg, daemon.Options{Version: "test", Log: zap.NewNop(), Ready: func() { close(ready) }, Records: j.see})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	j.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(j.stop)
	<-ready
	return j, began
}

func (j *journey) see(r *proxy.Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, r)
	close(j.more)
	j.more = make(chan struct{})
}

// event waits for an event and returns its details.
func (j *journey) event(t *testing.T, name string) string {
	t.Helper()
	return j.record(t, name).Detail
}

// record waits for an event.
func (j *journey) record(t *testing.T, name string) *proxy.Record {
	t.Helper()
	return j.nth(t, name, 1)
}

// nth waits for the how manyth event of a name.
func (j *journey) nth(t *testing.T, name string, n int) *proxy.Record {
	t.Helper()
	late := time.After(patience)
	for {
		j.mu.Lock()
		var found *proxy.Record
		left := n
		for _, r := range j.events {
			if r.Event == name {
				if left--; left == 0 {
					found = r
				}
			}
		}
		more := j.more
		j.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("no event %q, or not %d of them", name, n)
		}
	}
}

func (j *journey) names() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, r := range j.events {
		if r.Stage == proxy.StageEvent {
			out = append(out, r.Event)
		}
	}
	return out
}

func (j *journey) status(t *testing.T) admin.Status {
	t.Helper()
	var s admin.Status
	if err := admin.Get(t.Context(), j.cfg.Admin.Socket, "/status", &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// updates is a Workload API stream.
type updates chan update

type update struct {
	at  time.Time
	now *workloadapi.X509Context
}

func (u updates) OnX509ContextUpdate(c *workloadapi.X509Context) { u <- update{time.Now(), c} }
func (u updates) OnX509ContextWatchError(error)                  {}

func (j *journey) stream(t *testing.T) updates {
	t.Helper()
	u := make(updates, 100)
	ctx, cancel := context.WithCancel(context.Background())
	var over sync.WaitGroup
	over.Go(func() { _ = workloadapi.WatchX509Context(ctx, u, workloadapi.WithAddr("unix://"+j.cfg.Agent.Socket)) })
	t.Cleanup(func() { cancel(); over.Wait() })
	return u
}

func (u updates) next(t *testing.T) update {
	t.Helper()
	select {
	case c := <-u:
		return c
	case <-time.After(patience):
		t.Fatal("nothing came on the stream")
		return update{}
	}
}

// until skips what comes before.
func (u updates) until(t *testing.T, want func(update) bool) update {
	t.Helper()
	for {
		if c := u.next(t); want(c) {
			return c
		}
	}
}

func (u update) serial() string { return u.now.DefaultSVID().Certificates[0].SerialNumber.Text(16) }

func (u update) roots(td spiffeid.TrustDomain) int {
	b, ok := u.now.Bundles.Get(td)
	if !ok {
		return 0
	}
	return len(b.X509Authorities())
}

// damaged are the ways in which an authority's store can be away.
var damaged = map[string]struct {
	hurt func(dir string) error
	mend func(dir string) error
}{
	"journal damaged": {
		hurt: func(dir string) error {
			return errors.Join(os.Rename(dir+"/journal.db", dir+"/../saved.db"), os.WriteFile(dir+"/journal.db", []byte(strings.Repeat("no journal ", 4096)), 0o600))
		},
		mend: func(dir string) error { return os.Rename(dir+"/../saved.db", dir+"/journal.db") },
	},
	"disk not mounted": {
		hurt: func(dir string) error { return errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)) },
		mend: func(dir string) error { return errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)) },
	},
	"key missing": {
		hurt: func(dir string) error { return os.Rename(dir+"/x509-ca-1.key", dir+"/../saved.key") },
		mend: func(dir string) error { return os.Rename(dir+"/../saved.key", dir+"/x509-ca-1.key") },
	},
}

// The promises of 200 ms and 100 ms are for the best of some tries: the machine may be busy with other things.
const startsWithin, replacedWithin = 200 * time.Millisecond, 100 * time.Millisecond

func TestStartWithoutTheAuthority(t *testing.T) {
	for name, way := range damaged {
		t.Run(name, func(t *testing.T) {
			file := write(t, "")
			j, _ := begin(t, file)
			before := fetch(t, j.cfg).DefaultSVID().Certificates[0].SerialNumber.Text(16)
			j.stop()
			if err := way.hurt(j.cfg.Authority.Dir); err != nil {
				t.Fatal(err)
			}
			best := time.Hour
			for enough := time.Now().Add(patience); best > startsWithin && time.Now().Before(enough); {
				j.stop()
				var began time.Time
				j, began = begin(t, file)
				got := fetch(t, j.cfg)
				best = min(best, time.Since(began))
				if now := got.DefaultSVID().Certificates[0].SerialNumber.Text(16); now != before {
					t.Fatalf("serial %s, not the kept %s", now, before)
				}
			}
			t.Logf("SVID served %s after the start", best.Round(time.Millisecond))
			if best > startsWithin {
				t.Errorf("served after %s", best)
			}
			u := j.stream(t)
			if first := u.next(t); first.serial() != before {
				t.Error("the stream begins with another SVID")
			}
			s := j.status(t)
			if s.Healthy() || !strings.HasPrefix(s.Authority.Issuance, "none") || s.Identity.EarliestEnd.IsZero() ||
				!slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "the authority cannot be opened") }) {
				t.Errorf("status %+v", s)
			}
			if _, err := admin.Order(t.Context(), j.cfg.Admin.Socket, admin.CAOrder{Step: "prepare"}); !errors.Is(err, admin.ErrUnavailable) {
				t.Errorf("an order to an authority that is away: %v", err)
			}

			if err := way.mend(j.cfg.Authority.Dir); err != nil {
				t.Fatal(err)
			}
			j.event(t, "authority opened")
			u.until(t, func(c update) bool { return c.serial() != before })
			// Only the failure of the last attempt, if any, may still be in the status; none is after an SVID was issued.
			if s := j.status(t); !s.Healthy() || s.Authority.Issuance != "ok" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// Without anything kept there is nothing to serve, and the daemon says why rather than begin with a new CA.
func TestNoStartWithoutAuthorityAndKeptSVIDs(t *testing.T) {
	file := write(t, "")
	j, _ := begin(t, file)
	fetch(t, j.cfg)
	j.stop()
	if err := errors.Join(os.RemoveAll(j.cfg.Agent.State), damaged["journal damaged"].hurt(j.cfg.Authority.Dir)); err != nil {
		t.Fatal(err)
	}
	_, err := daemon.New(t.Context(), j.cfg, daemon.Options{Version: "test", Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "journal.db") || !strings.Contains(err.Error(), "backup") {
		t.Errorf("error %v", err)
	}
}

// SVIDs in a folder of others' are a finding, not a fallback.
func TestKeptSVIDsOfOthersAreRefused(t *testing.T) {
	file := write(t, "")
	j, _ := begin(t, file)
	fetch(t, j.cfg)
	j.stop()
	if err := os.Chmod(filepath.Join(j.cfg.Agent.State, "svids"), 0o777); err != nil { //nolint:gosec // that is the point
		t.Fatal(err)
	}
	_, err := daemon.New(t.Context(), j.cfg, daemon.Options{Version: "test", Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), "chmod 0700") {
		t.Errorf("error %v", err)
	}
}

// A CA is replaced by orders, under an open stream: published before it signs, and taken away at once when its key is known
// to others.
func TestReplaceTheCA(t *testing.T) {
	j, _ := begin(t, write(t, ""))
	u := j.stream(t)
	first := u.next(t)
	td := j.cfg.TrustDomain
	order := func(o admin.CAOrder) (admin.CAs, error) { return admin.Order(t.Context(), j.cfg.Admin.Socket, o) }

	if _, err := order(admin.CAOrder{Step: "activate"}); !errors.Is(err, admin.ErrRefused) || !strings.Contains(err.Error(), "no CA is prepared") {
		t.Errorf("activated nothing: %v", err)
	}
	cas, err := order(admin.CAOrder{Step: "prepare"})
	if err != nil || len(cas.CAs) != 2 || cas.CAs[1].State != "prepared" || cas.Next != "activate" || cas.NextCA != 2 || cas.NextAt.Before(time.Now()) {
		t.Fatalf("%+v, %v", cas, err)
	}
	if got := u.next(t); got.roots(td) != 2 || got.serial() != first.serial() {
		t.Errorf("after prepare: %d CAs, and the SVID changed: %v", got.roots(td), got.serial() != first.serial())
	}
	if _, err := order(admin.CAOrder{Step: "activate"}); !errors.Is(err, admin.ErrRefused) || !strings.Contains(err.Error(), "possible from "+cas.NextAt.UTC().Format(time.RFC3339)) {
		t.Errorf("activated before it was published for long enough: %v", err)
	}
	if cas, err = order(admin.CAOrder{Step: "activate", Force: true}); err != nil || cas.CAs[1].State != "active" {
		t.Fatalf("%+v, %v", cas, err)
	}
	if _, err := order(admin.CAOrder{Step: "retire", Generation: 1}); !errors.Is(err, admin.ErrRefused) || !strings.Contains(err.Error(), "is valid; possible from") {
		t.Errorf("retired while its SVID is valid: %v", err)
	}
	if cas, err = order(admin.CAOrder{Step: "retire", Generation: 1, Force: true}); err != nil || len(cas.CAs) != 1 {
		t.Fatalf("%+v, %v", cas, err)
	}
	bundle := u.until(t, func(c update) bool { return c.roots(td) == 1 })
	last := bundle
	if bundle.serial() == first.serial() {
		last = u.until(t, func(c update) bool { return c.serial() != first.serial() })
	}
	retired := j.record(t, "ca retired").Time // once it is on the disk, which may be slow
	t.Logf("of a CA that was retired by force, streams learn after %s, and have its SVIDs replaced after %s",
		bundle.at.Sub(retired).Round(100*time.Microsecond), last.at.Sub(retired).Round(100*time.Microsecond))
	took, generation := last.at.Sub(retired), 2
	for enough := time.Now().Add(patience); took > replacedWithin; generation++ {
		if time.Now().After(enough) {
			t.Fatalf("replaced after %s", took)
		}
		for _, o := range []admin.CAOrder{{Step: "prepare"}, {Step: "activate", Force: true}, {Step: "retire", Generation: uint32(generation), Force: true}} {
			if _, err := order(o); err != nil {
				t.Fatal(err)
			}
		}
		before := last.serial()
		last = u.until(t, func(c update) bool { return c.roots(td) == 1 && c.serial() != before })
		took = last.at.Sub(j.nth(t, "ca retired", generation).Time)
	}
	if b, _ := last.now.Bundles.Get(td); last.now.DefaultSVID().Certificates[0].CheckSignatureFrom(b.X509Authorities()[0]) != nil {
		t.Error("the SVID is not signed by the CA of its bundle")
	}

	by := fmt.Sprintf("uid %d", os.Getuid())
	for _, name := range []string{"ca prepare ordered", "ca prepared", "ca activated", "ca retire ordered", "ca retired", "ca activate refused"} {
		if d := j.event(t, name); !strings.Contains(d, by) {
			t.Errorf("%s: %q does not say who asked", name, d)
		}
	}
	names := j.names()
	if slices.Index(names, "ca prepare ordered") > slices.Index(names, "ca prepared") {
		t.Error("the order is recorded after it was carried out")
	}
	if s := j.status(t); !s.Healthy() || len(s.Authority.CAs) != 1 || int(s.Authority.CAs[0].Generation) != generation || len(s.Expires) != 1 {
		t.Errorf("status %+v", s)
	}
}
