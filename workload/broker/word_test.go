package broker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

var stands = attest.Standing{Changes: 7, Cgroup: 4711, Groups: "\x18\x00\x00\x00"}

// lasting makes the agent's word stand for as long as a test takes on any machine.
func lasting(o *broker.ClientOptions) { o.Fresh = time.Hour }

func (b *bench) borrowSeen(c *broker.Client, r attest.Reference, s attest.Standing) *broker.Loan {
	b.t.Helper()
	l, err := c.BorrowSeen(b.ctx(), r, s)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	return l
}

// A process that opens one connection after another costs the agent one look.
func TestSecondConnectionAsksNobody(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(lasting)
	for range 100 {
		l := b.borrowSeen(c, r, stands)
		if l.ID() != portal().ID || l.Err() != nil {
			t.Fatalf("%s, %v", l.ID(), l.Err())
		}
		l.Close()
	}
	if looks := len(b.seen.attested()); looks != 1 {
		t.Errorf("the agent has looked %d times", looks)
	}
}

// A process of which more than a connection has changed is asked about, whatever the agent has said before, and so is one
// of which not enough can be seen.
func TestProcessThatStandsOtherwiseIsAskedAbout(t *testing.T) {
	for name, now := range map[string]attest.Standing{
		"another program":     {Changes: stands.Changes + 1, Cgroup: stands.Cgroup, Groups: stands.Groups},
		"another cgroup":      {Changes: stands.Changes, Cgroup: stands.Cgroup + 1, Groups: stands.Groups},
		"other groups":        {Changes: stands.Changes, Cgroup: stands.Cgroup},
		"nothing is known":    {},
		"no changes are told": {Cgroup: stands.Cgroup, Groups: stands.Groups},
		"no cgroup is told":   {Changes: stands.Changes, Groups: stands.Groups},
	} {
		t.Run(name, func(t *testing.T) {
			b := serve(t, []*workload.Entry{portal()})
			_, r := b.run(1)
			c := b.client(lasting)
			first, second := b.borrowSeen(c, r, stands), b.borrowSeen(c, r, stands)
			b.again(r, newProcess("unix.uid", "1001")) // of which no event has told yet
			if _, err := c.BorrowSeen(b.ctx(), r, now); !errors.Is(err, workload.ErrNoIdentity) {
				t.Errorf("%v", err)
			}
			over(t, first, workload.ErrNoIdentity)
			over(t, second, workload.ErrNoIdentity)
			if _, err := c.BorrowSeen(b.ctx(), r, stands); !errors.Is(err, workload.ErrNoIdentity) { // what was said is forgotten
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("never seen enough", func(t *testing.T) {
		b := serve(t, []*workload.Entry{portal()})
		_, r := b.run(1)
		c := b.client(lasting)
		b.borrowSeen(c, r, attest.Standing{})
		b.again(r, newProcess("unix.uid", "1001"))
		if _, err := c.BorrowSeen(b.ctx(), r, attest.Standing{}); !errors.Is(err, workload.ErrNoIdentity) {
			t.Errorf("%v", err)
		}
	})
}

// What was said to several who had seen the process differently stands for nobody: it is not known of whom it is true.
func TestWordToThoseWhoSawDifferently(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(lasting)
	b.borrow(c, r)
	looked, goOn := b.stall()
	other := stands
	other.Cgroup++
	answers := make(chan error, 3)
	ask := func(s attest.Standing) {
		_, err := c.BorrowSeen(b.ctx(), r, s)
		answers <- err
	}
	go ask(stands) // holds the two others up, who share a question
	<-looked
	go ask(other)
	go ask(stands)
	close(goOn)
	for range 3 {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	b.again(r, newProcess("unix.uid", "1001"))
	if _, err := c.BorrowSeen(b.ctx(), r, other); err == nil { // whoever came alone in the end may have been stands
		if _, err := c.BorrowSeen(b.ctx(), r, stands); !errors.Is(err, workload.ErrNoIdentity) {
			t.Errorf("%v", err)
		}
	}
}

// An old word stands for nothing.
func TestWordGrowsOld(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(func(o *broker.ClientOptions) { o.Fresh = time.Nanosecond })
	b.borrowSeen(c, r, stands)
	b.again(r, newProcess("unix.uid", "1001"))
	if _, err := c.BorrowSeen(b.ctx(), r, stands); !errors.Is(err, workload.ErrNoIdentity) {
		t.Errorf("%v", err)
	}
}

// Whoever knows of a reason to doubt the agent's word has it asked anew, about those, too, of whom it is being asked.
func TestDoubt(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(lasting)
	first := b.borrowSeen(c, r, stands)
	c.Doubt()
	looked, goOn := b.stall()
	second := make(chan error, 1)
	go func() {
		_, err := c.BorrowSeen(b.ctx(), r, stands)
		second <- err
	}()
	<-looked
	c.Doubt()
	close(goOn)
	if err := <-second; err != nil || first.Err() != nil {
		t.Fatal(err, first.Err())
	}
	b.again(r, newProcess("unix.uid", "1001"))
	if _, err := c.BorrowSeen(b.ctx(), r, stands); !errors.Is(err, workload.ErrNoIdentity) {
		t.Errorf("%v", err)
	}
}

// As long as a process calls, the agent is asked again and again, and what it says then counts for all.
func TestProcessThatCallsIsLookedAt(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(func(o *broker.ClientOptions) { o.Fresh = 20 * time.Millisecond })
	first := b.borrowSeen(c, r, stands)
	for len(b.seen.attested()) < 5 {
		b.borrowSeen(c, r, stands).Close()
	}
	b.again(r, newProcess("unix.uid", "1001"))
	for first.Err() == nil {
		if l, err := c.BorrowSeen(b.ctx(), r, stands); err == nil {
			l.Close()
		}
	}
	over(t, first, workload.ErrNoIdentity)
	settled(t, c, broker.ClientStatus{})
}

// While the agent is away nobody begins on what it has said before, and neither does who has been denied meanwhile.
func TestWordEndsWithTheAgent(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(lasting)
	l := b.borrowSeen(c, r, stands)
	b.fall()
	for { // until the client has seen it
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		l, err := c.BorrowSeen(ctx, r, stands)
		cancel()
		if err == nil {
			l.Close()
			continue
		}
		if !errors.Is(err, workload.ErrUnavailable) {
			t.Fatal(err)
		}
		break
	}
	b.denials.deny(portal().ID)
	b.rise()
	if _, err := c.BorrowSeen(b.ctx(), r, stands); !errors.Is(err, workload.ErrDenied) {
		t.Errorf("%v", err)
	}
	over(t, l, workload.ErrDenied)
}

// BenchmarkNextConnection is what the identity costs for one more connection of a process, in this process: with the agent's
// word at hand, and by asking.
func BenchmarkNextConnection(b *testing.B) {
	for name, s := range map[string]attest.Standing{"vouched": stands, "asked": {}} {
		b.Run(name, func(b *testing.B) {
			w := serve(b, []*workload.Entry{portal()})
			_, r := w.run(1)
			c := w.client(lasting)
			defer w.borrowSeen(c, r, s).Close()
			b.ReportAllocs()
			for b.Loop() {
				l, err := c.BorrowSeen(b.Context(), r, s)
				if err != nil {
					b.Fatal(err)
				}
				l.Close()
			}
		})
	}
}
