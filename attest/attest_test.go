package attest_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	wardunix "github.com/wardmesh/ward/attest/unix"
)

func TestSelectors(t *testing.T) {
	a := attest.Selector{Type: attest.UnixUID, Value: "1"}
	b := attest.Selector{Type: attest.UnixUID, Value: "2"}
	c := attest.Selector{Type: attest.SystemdUserUnit, Value: "x.service"}
	s := attest.NewSelectors(b, a, c, a)
	if diff := cmp.Diff(attest.Selectors{c, a, b}, s); diff != "" {
		t.Error(diff)
	}
	if !s.Contains(attest.NewSelectors(a, c)) || s.Contains(attest.NewSelectors(a, attest.Selector{Type: attest.UnixGID, Value: "1"})) {
		t.Error("Contains is wrong")
	}
	if c.Strength() != attest.Weak || a.Strength() != attest.Strong {
		t.Error("a user's own unit is weak, a uid is strong")
	}
	if got, want := s.String(), "systemd.user_unit: x.service, unix.uid: 1, unix.uid: 2"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

// Facts that could not be read are no attestation, whatever else is known.
func TestRunFailsWithAnAttestor(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	actor := start(t, "")
	actor.do("unix " + l.Addr().String())
	_, p := acceptPinned(t, pinner, l)
	broken := errors.New("broken")
	a, err := attest.Run(t.Context(), p, []attest.Attestor{wardunix.Attestor{}, failing{broken}})
	if !errors.Is(err, broken) || len(a.Selectors) != 0 {
		t.Fatalf("%v, %v", a, err)
	}
}

type failing struct{ err error }

func (failing) Name() string { return "failing" }

func (f failing) Attest(context.Context, attest.Process) ([]attest.Selector, error) {
	return nil, f.err
}

// What an honest process gets, over each kind of connection and on each kind of kernel.
func TestAttestation(t *testing.T) {
	path := program(t)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	uid, groups := uint32(os.Geteuid()), []uint32(nil)
	var change []func(*exec.Cmd)
	if uid == 0 {
		uid, groups = 12345, []uint32{12346, 12347}
		change = append(change, asUser(uid))
	} else {
		own, err := os.Getgroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range own {
			groups = append(groups, uint32(g))
		}
	}
	gid := uid
	if os.Geteuid() != 0 {
		gid = uint32(os.Getegid())
	}
	want := []attest.Selector{
		{Type: attest.UnixUID, Value: fmt.Sprint(uid)},
		{Type: attest.UnixGID, Value: fmt.Sprint(gid)},
		{Type: attest.ExePath, Value: path},
		{Type: attest.ExeSHA256, Value: hex.EncodeToString(sum[:])},
	}
	for _, g := range groups {
		want = append(want, attest.Selector{Type: attest.UnixGroup, Value: fmt.Sprint(g)})
	}
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			check := func(t *testing.T, actor *process, p *peer.Process, strength attest.Strength) {
				t.Helper()
				a := run(t, p, allAttestors(t))
				if diff := cmp.Diff(attest.NewSelectors(want...), omit(a.Selectors, attest.SystemdUnit, attest.SystemdUserUnit)); diff != "" {
					t.Error(diff)
				}
				if a.Strength != strength {
					t.Errorf("strength %v; want %v", a.Strength, strength)
				}
				if p.PID() != actor.pid() {
					t.Errorf("pid %d; want %d", p.PID(), actor.pid())
				}
				actor.kill()
				await(t, p.Done(), "the exit")
				if err := p.Alive(); !errors.Is(err, attest.ErrExited) {
					t.Errorf("after exit: %v", err)
				}
			}
			t.Run("Unix", func(t *testing.T) {
				l := listenUnix(t)
				actor := start(t, path, change...)
				actor.do("unix " + l.Addr().String())
				_, p := acceptPinned(t, pinner, l)
				strength := attest.Strong
				if without.PeerPidfd {
					strength = attest.Weak
				}
				check(t, actor, p, strength)
			})
			for network, addresses := range map[string][2]string{
				"IPv4":                     {"127.0.0.1:0", "127.0.0.1"},
				"IPv4, another address":    {"127.77.0.53:0", "127.77.0.53"},
				"IPv6":                     {"[::1]:0", "::1"},
				"IPv4 to a dual listener":  {"[::]:0", "127.0.0.1"},
				"IPv4 from an IPv6 socket": {"127.0.0.1:0", "::ffff:127.0.0.1"},
				"both in an IPv6 socket":   {"[::]:0", "::ffff:127.0.0.1"},
			} {
				t.Run(network, func(t *testing.T) {
					l, err := net.Listen("tcp", addresses[0])
					if err != nil {
						t.Skipf("SKIPPED: needs IPv6: %v", err)
					}
					defer l.Close()
					actor := start(t, path, change...)
					to := netip.AddrPortFrom(netip.MustParseAddr(addresses[1]), uint16(l.Addr().(*net.TCPAddr).Port))
					actor.do("tcp " + to.String())
					_, p := acceptPinned(t, pinner, l)
					check(t, actor, p, attest.Strong)
				})
			}
		})
	}
}

func omit(s attest.Selectors, kinds ...string) (out attest.Selectors) {
next:
	for _, x := range s {
		for _, k := range kinds {
			if x.Type == k {
				continue next
			}
		}
		out = append(out, x)
	}
	return out
}

func TestTurns(t *testing.T) {
	var turns attest.Turns
	done, err := turns.Take(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	// Another user does not wait.
	other, err := turns.Take(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	other()
	// The same one does.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.Take(ended, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	next := make(chan func())
	go func() {
		d, _ := turns.Take(context.Background(), 1)
		next <- d
	}()
	done()
	(<-next)()
}

// One user's queue is not everybody's: whoever makes it long is turned away at its end.
func TestTurnsAreNotQueuedForWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns attest.Turns
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var waiting sync.WaitGroup
		for range 1024 {
			waiting.Go(func() { _, _ = turns.Take(ctx, 1) })
		}
		synctest.Wait()
		if _, err := turns.Take(ctx, 1); !errors.Is(err, attest.ErrCrowded) {
			t.Errorf("got %v", err)
		}
		done, err := turns.Take(ctx, 2)
		if err != nil {
			t.Fatalf("another user: %v", err)
		}
		done()
		cancel()
		waiting.Wait()
	})
}
