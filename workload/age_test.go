package workload

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wardmesh/ward/attest"
)

func aged(e *Entry, age time.Duration) *Entry { e.MaxAge = age; return e }

// attested is how often a process was attested and matched.
func (b *bench) attested() (n int) {
	b.seen.read(func(o *observer) { n = len(o.visits) })
	return n
}

func TestAgedAttestationIsRepeated(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		for n := 1; n < 4; n++ {
			st.want(1) // nothing new is told
			if got := b.attested(); got != n {
				t.Fatalf("attested %d times, want %d", got, n)
			}
			time.Sleep(25*time.Second - 1)
			synctest.Wait()
			if got := b.attested(); got != n {
				t.Fatalf("attested %d times before it was due", got)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
		}
	}, aged(portal(), time.Hour), aged(portalExe(), 25*time.Second)) // the smallest of both
}

func TestNoBoundOnAge(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		b.watch(portalProcess(), X509Bundles).want(1)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := b.attested(); n != 1 {
			t.Errorf("attested %d times", n)
		}
	}, portal())
}

func TestEntryThatIsNotGrantedDoesNotAgeOthers(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		b.watch(newProcess("unix.uid", "1000"), X509Bundles).want(1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := b.attested(); n != 1 {
			t.Errorf("attested %d times", n)
		}
	}, portal(), aged(portalExe(), time.Second))
}

func TestAgedAttestationThatFailsEndsTheSession(t *testing.T) {
	failure := errors.New("the unit cannot be read")
	for _, tt := range []struct {
		name   string
		change func(*process)
		want   error
	}{
		{"an attestor fails", func(p *process) { p.turn(failure) }, failure},
		{"the facts are others", func(p *process) { p.turn(nil, "unix.uid", "1001") }, ErrNoIdentity},
		{"another program", func(p *process) { p.become(attest.ErrReplaced) }, attest.ErrReplaced},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, b *bench) {
				p := portalProcess()
				st, h := b.watch(p, X509SVIDs), b.hold(p, LentSVIDs)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				tt.change(p)
				st.want(1)
				time.Sleep(time.Second)
				st.ended(1, tt.want)
				if err := h.Err(); !errors.Is(err, tt.want) {
					t.Errorf("the holding says %v", err)
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			}, lent(aged(portal(), 3*time.Second)))
		})
	}
}

func TestEditedAgeReachesOpenSessions(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		st := b.watch(portalProcess(), X509SVIDs)
		st.want(1)
		load(t, b.db, aged(portal(), 2*time.Second))
		st.want(1)
		if n := b.attested(); n != 2 {
			t.Fatalf("attested %d times", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := b.attested(); n != 3 {
			t.Errorf("attested %d times", n)
		}
	}, portal())
}

func TestAgeThatCannotBeKeptIsRefused(t *testing.T) {
	db := directory(t)
	for _, age := range []time.Duration{-1, 1, MinAge - 1} {
		txn := db.Txn(true)
		err := NewRegistry(db).Load(txn, []*Entry{aged(portal(), age)}, nil)
		txn.Abort()
		if err == nil || !strings.Contains(err.Error(), "max_age") {
			t.Errorf("%v: %v", age, err)
		}
	}
}

// A broker sees entries with Proxy only, and what it was for is in every report.
func TestLend(t *testing.T) {
	run(t, func(t *testing.T, b *bench) {
		broker := &Broker{PID: 12, UID: 990}
		for _, want := range []Want{LentSVIDs, LentBundles} {
			var updates []Update
			err := b.s.Lend(t.Context(), broker, portalProcess(), want, func(u Update) error {
				updates = append(updates, u)
				return errDone
			})
			if !errors.Is(err, errDone) || len(updates) != 1 || updates[0].Bundle == nil {
				t.Fatalf("%s: %v, %v", want, updates, err)
			}
			if n := len(updates[0].SVIDs); n != map[Want]int{LentSVIDs: 1}[want] {
				t.Errorf("%s: %d SVIDs", want, n)
			}
		}
		b.seen.read(func(o *observer) {
			for _, v := range o.visits {
				if v.Broker != broker || len(v.Entries) != 1 || v.Entries[0].Name != "portal-exe" || v.PID != 4711 {
					t.Errorf("reported as %+v", v)
				}
			}
		})
		for _, want := range []Want{X509SVIDs, X509Bundles} {
			if err := b.s.Lend(t.Context(), broker, portalProcess(), want, nil); err == nil {
				t.Errorf("lends %s", want)
			}
		}
		if err := b.s.Lend(t.Context(), nil, portalProcess(), LentSVIDs, nil); err == nil {
			t.Error("lends to nobody")
		}
		load(t, b.db, portal())
		if err := b.s.Lend(t.Context(), broker, portalProcess(), LentBundles, nil); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("without proxy: %v", err)
		}
		if r := b.s.Refuse(Visit{PID: 1, Want: LentSVIDs, Broker: broker}, attest.ErrExited); r.Reference == "" || !errors.Is(r, attest.ErrExited) {
			t.Errorf("%v", r)
		}
		b.seen.read(func(o *observer) {
			if len(o.refused) != 2 {
				t.Errorf("%d refusals reported", len(o.refused))
			}
		})
	}, portal(), lent(portalExe()))
}

var errDone = errors.New("enough")
