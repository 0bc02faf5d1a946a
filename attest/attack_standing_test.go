package attest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// standings is a pinner, and a listener of it, to which callers' standings are known; the caller that is given has
// connected before.
func standings(t testing.TB) (*peer.Pinner, string, func() *peer.Referred) {
	t.Helper()
	pinner := newPinner(t, peer.Options{})
	l := listenUnix(t)
	address := "unix " + l.Addr().String()
	first := start(t, "")
	first.do(address)
	c, _ := acceptReferred(t, pinner, l)
	for deadline := time.Now().Add(20 * time.Second); !standing(t, c).Known(); first.do("cat /proc/self/stat") {
		if time.Now().After(deadline) {
			if initialNamespaces(t) {
				t.Fatal("the kernel does not tell enough of a caller")
			}
			t.Skip("SKIPPED: needs PIDFD_GET_INFO (Linux 6.13) and the proc connector (the host's own namespaces)")
		}
	}
	first.kill()
	return pinner, address, func() *peer.Referred {
		t.Helper()
		c, _ := acceptReferred(t, pinner, l)
		return c
	}
}

func standing(t testing.TB, c *peer.Referred) attest.Standing {
	t.Helper()
	s, err := c.Standing()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A process stands as it stood as long as it opens connections and does nothing else, whatever other programs start.
func TestStanding(t *testing.T) {
	pinner, address, take := standings(t)
	caller := start(t, "")
	caller.do(address)
	before := standing(t, take())
	if !before.Same(before) || (attest.Standing{}).Same(attest.Standing{}) {
		t.Errorf("%+v", before)
	}
	same := 0
	for range 10 {
		other := start(t, "")
		other.do(address)
		if theirs := standing(t, take()); theirs.Same(before) {
			t.Errorf("another process stands the same: %+v", theirs)
		}
		caller.do(address)
		now := standing(t, take())
		if now.Same(before) {
			same++
		}
		before = now // events that a busy machine has lost count as a change of all
	}
	if same == 0 {
		t.Errorf("it never stands as it stood: %+v", before)
	}
	caller.do(address)
	c := take()
	caller.kill()
	if s, err := c.Standing(); err == nil {
		t.Errorf("%+v of a process that has exited", s)
	}
	if s := pinner.Status(); s.Held != 0 || s.ExecEvents {
		t.Errorf("who only names callers holds them: %+v", s)
	}
}

// A process execs another program, and that connects at once, before any event can have been waited for. The attacker
// gets nothing: it never stands as the program before stood.
func TestAttackStandingExec(t *testing.T) {
	_, address, take := standings(t)
	attacker, trusted := start(t, ""), copyProgram(t, "trusted")
	attacker.do(address)
	before := standing(t, take())
	for range 50 {
		attacker.exec(trusted)
		attacker.do(address)
		now := standing(t, take())
		if now.Same(before) || !now.Known() {
			t.Fatalf("%+v; before it was %+v", now, before)
		}
		before = now
	}
}

// A process changes its user. The attacker gets nothing: the connections that it has are another user's, and so is how it
// stands.
func TestAttackStandingUser(t *testing.T) {
	rootOnly(t, "change users")
	_, address, take := standings(t)
	attacker := start(t, "")
	attacker.do(address)
	c := take()
	before := standing(t, c)
	attacker.do("setresuid 12345")
	_, err := c.Standing()
	wantError(t, err, attest.ErrMismatch)
	attacker.do(address)
	if now := standing(t, take()); now.Same(before) {
		t.Errorf("it stands the same: %+v", now)
	}
}

// How callers stand is known neither of TCP clients nor where the kernel tells too little.
func TestStandingUnknown(t *testing.T) {
	for name, network := range map[string]string{"tcp": "tcp", "no events": "unix", "no information": "unix"} {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: peer.Missing{ExecEvents: strings.HasSuffix(name, "events"), PidfdInfo: strings.HasSuffix(name, "information")}})
			caller := start(t, "")
			l := listenUnix(t)
			address := l.Addr().String()
			var c *peer.Referred
			if network == "unix" {
				caller.do("unix " + address)
				c, _ = acceptReferred(t, pinner, l)
			} else {
				l := listenTCP(t, "127.0.0.1:0")
				caller.do("tcp " + l.Addr().String())
				c, _ = acceptReferred(t, pinner, l)
			}
			if s := standing(t, c); s.Known() || s.Same(s) {
				t.Errorf("%+v", s)
			}
		})
	}
}

// BenchmarkStanding is what it costs to see whether a caller is still what it was.
func BenchmarkStanding(b *testing.B) {
	_, address, take := standings(b)
	caller := start(b, "")
	caller.do(address)
	c := take()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Standing(); err != nil {
			b.Fatal(err)
		}
	}
}
