package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

func TestBorrow(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	b.again(someConn, newProcess("unix.uid", "1000"))
	c := b.client()
	for _, ref := range []attest.Reference{r, someConn} {
		l := b.borrow(c, ref)
		if l.ID().String() != "spiffe://clinic.test/portal" || l.Err() != nil {
			t.Fatalf("%s, %v", l.ID(), l.Err())
		}
		svid, err := l.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := l.GetX509BundleForTrustDomain(clinic)
		if err != nil {
			t.Fatal(err)
		}
		if err := workload.VerifyX509(svid.Certificates, l.ID(), svid.PrivateKey.Public(), bundle, time.Now()); err != nil {
			t.Error(err)
		}
		if _, err := l.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.test")); err == nil {
			t.Error("a bundle of another trust domain")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := l.GetX509SVID(); !errors.Is(err, workload.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// Loans of a process share a stream; those of connections do not.
func TestLoansOfAProcessShareOneStream(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	b.again(someConn, newProcess("unix.uid", "1000"))
	c := b.client(func(o *broker.ClientOptions) { o.Idle = 1 })
	one, two := b.borrow(c, r), b.borrow(c, r)
	if s := c.Status(); s.Lines != 1 || s.Idle != 0 {
		t.Errorf("%+v", s)
	}
	x, y := b.borrow(c, someConn), b.borrow(c, someConn)
	if s := c.Status(); s.Lines != 3 {
		t.Errorf("%+v", s)
	}
	for _, l := range []*broker.Loan{one, two, x, y, y} {
		l.Close()
	}
	settled(t, c, broker.ClientStatus{Lines: 1, Idle: 1}) // the process's waits for its next call
	b.borrow(c, r).Close()
	_, other := b.run(2)
	b.borrow(c, other).Close()
	settled(t, c, broker.ClientStatus{Lines: 1, Idle: 1}) // and no more than so many do
}

func TestIdleLoansEnd(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(func(o *broker.ClientOptions) { o.Keep = time.Millisecond })
	b.borrow(c, r).Close()
	settled(t, c, broker.ClientStatus{})
}

// settled waits until the client has come to rest in a state.
func settled(t *testing.T, c *broker.Client, want broker.ClientStatus) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for c.Status() != want {
		if time.Now().After(deadline) {
			t.Fatalf("%+v; want %+v", c.Status(), want)
		}
		runtime.Gosched()
	}
}

// Each way in which a loan comes to its end, or never begins: what egress can tell apart, and find in the agent's trail.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(b *bench, p *process, r attest.Reference)
		want   error
		not    error
	}{
		{"exited", func(_ *bench, p *process, _ attest.Reference) { p.end(attest.ErrExited) }, attest.ErrExited, nil},
		{"replaced", func(_ *bench, p *process, _ attest.Reference) { p.end(attest.ErrReplaced) }, attest.ErrReplaced, nil},
		{"its entry is gone", func(b *bench, _ *process, _ attest.Reference) { b.load() }, workload.ErrNoIdentity, workload.ErrDenied},
		{"its entry lends no more", func(b *bench, _ *process, _ attest.Reference) { b.load(own(portal())) }, workload.ErrNoIdentity, workload.ErrDenied},
		{"denied", func(b *bench, _ *process, _ attest.Reference) { b.denials.deny(portal().ID) }, workload.ErrDenied, nil},
		{"another identity", func(b *bench, _ *process, _ attest.Reference) { b.load(lent("nurse", "unix.uid", "1000")) }, workload.ErrNoIdentity, workload.ErrDenied},
		{"the broker is one no longer", func(b *bench, _ *process, _ attest.Reference) { b.allow() }, workload.ErrNotBroker, workload.ErrNoIdentity},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := serve(t, []*workload.Entry{portal()})
			p, r := b.run(1)
			c := b.client()
			l := b.borrow(c, r)
			tt.change(b, p, r)
			refusal := over(t, l, tt.want)
			if tt.not != nil && errors.Is(refusal, tt.not) {
				t.Errorf("%v is %v as well", refusal, tt.not)
			}
			if errors.Is(refusal, workload.ErrUnavailable) {
				t.Errorf("%v may pass", refusal)
			}
			if refusal.Reference != "" {
				if _, _, reported := b.seen.refused(refusal.Reference); !reported && tt.want != attest.ErrExited {
					t.Errorf("the agent knows nothing of reference %s", refusal.Reference)
				}
			} else if tt.name != "another identity" { // which the client sees by itself
				t.Errorf("%v has no reference", refusal)
			}
		})
	}
}

func TestBorrowIsRefusedAtOnce(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	p, r := b.run(1)
	p.facts = sel("unix.uid", "1001")
	c := b.client(func(o *broker.ClientOptions) { o.Wait = patience })
	start := time.Now()
	for _, tt := range []struct {
		ref  attest.Reference
		want error
	}{{r, workload.ErrNoIdentity}, {someProcess, attest.ErrExited}, {attest.Reference{}, attest.ErrReference}} {
		_, err := c.Borrow(t.Context(), tt.ref)
		var refusal *workload.Refusal
		if !errors.Is(err, tt.want) || !errors.As(err, &refusal) {
			t.Errorf("%v; want %v", err, tt.want)
		}
	}
	if took := time.Since(start); took > patience {
		t.Errorf("took %v, as if the agent were away", took)
	}
	settled(t, c, broker.ClientStatus{})
	b.fail(attest.ErrReference)
	if _, err := c.Borrow(t.Context(), r); !errors.Is(err, attest.ErrReference) {
		t.Errorf("%v", err)
	}
}

// A process that has become another program, of which no event has told yet, does not begin as what it was.
func TestKnownProcessIsAskedAboutAgain(t *testing.T) {
	b := serve(t, []*workload.Entry{portal(), lent("shell", "unix.uid", "1000", "exe.path", "/bin/sh")})
	_, r := b.run(1, "exe.path", "/usr/bin/portal")
	c := b.client()
	first := b.borrow(c, r)
	b.again(r, newProcess("unix.uid", "1000", "exe.path", "/bin/sh"))
	second := b.borrow(c, r)
	if id := second.ID().String(); id != "spiffe://clinic.test/shell" {
		t.Error(id)
	}
	if err := first.Err(); err != nil { // what it was is still granted, until the agent says otherwise
		t.Error(err)
	}
	b.again(r, newProcess("unix.uid", "1001"))
	if _, err := c.Borrow(b.ctx(), r); !errors.Is(err, workload.ErrNoIdentity) {
		t.Errorf("%v", err)
	}
	over(t, second, workload.ErrNoIdentity)
}

func TestConfirm(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	p, r := b.run(1, "exe.path", "/x")
	l := b.borrow(b.client(), r)
	if err := l.Confirm(b.ctx()); err != nil {
		t.Error(err)
	}
	b.load(portal(), lent("nurse", "unix.uid", "1000", "exe.path", "/x"))
	if err := l.Confirm(b.ctx()); err != nil { // it has another default now, and this one still
		t.Error(err)
	}
	p.become(attest.ErrExited)
	if err := l.Confirm(b.ctx()); !errors.Is(err, attest.ErrExited) {
		t.Errorf("%v", err)
	}
	over(t, l, attest.ErrExited)
}

func TestChanges(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	l := b.borrow(b.client(), r)
	changed := l.Changed()
	_, root := b.authority.ca()
	b.authority.publish(b.authority.root, root)
	<-changed
	bundle, err := l.GetX509BundleForTrustDomain(clinic)
	if err != nil || len(bundle.X509Authorities()) != 2 {
		t.Fatalf("%v, %v", bundle, err)
	}
	// It stays with its ID when that is no longer the default one.
	changed = l.Changed()
	b.load(portal(), lent("nurse", "unix.uid", "1000", "exe.path", "/x"))
	p := portal()
	p.DNSNames = []string{"portal.clinic.test"}
	b.load(p)
	<-changed
	svid, err := l.GetX509SVID()
	if err != nil || len(svid.Certificates[0].DNSNames) != 1 || l.ID() != svid.ID {
		t.Fatalf("%v, %v", svid, err)
	}
}

// The agent comes and goes five times under load: no loan is lost, and each new one waits.
func TestRestarts(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	c := b.client()
	var loans []*broker.Loan
	for pid := 1; pid <= 50; pid++ {
		_, r := b.run(pid)
		loans = append(loans, b.borrow(c, r))
	}
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w := range 4 {
		_, r := b.run(100 + w)
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				l, err := c.Borrow(context.Background(), r)
				if err != nil {
					t.Errorf("borrow %d: %v", n, err)
					return
				}
				if _, err := l.GetX509SVID(); err != nil {
					t.Error(err)
				}
				l.Close()
			}
		})
	}
	var longest time.Duration
	for range 5 {
		var changed []<-chan struct{}
		for _, l := range loans {
			changed = append(changed, l.Changed())
		}
		b.fall()
		for i, l := range loans {
			if _, err := l.GetX509SVID(); err != nil || l.Err() != nil {
				t.Fatalf("loan %d while the agent is away: %v", i, err)
			}
		}
		back := time.Now()
		b.rise()
		for _, ch := range changed {
			<-ch // the new agent has issued anew
		}
		longest = max(longest, time.Since(back))
	}
	close(stop)
	load.Wait()
	for i, l := range loans {
		if err := l.Err(); err != nil || l.ID().Path() != "/portal" {
			t.Errorf("loan %d: %s, %v", i, l.ID(), err)
		}
	}
	t.Logf("the slowest return of 50 loans took %v", longest)
}

// What has ended while the agent was away ends when it is back.
func TestEndWhileTheAgentIsAway(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	p, gone := b.run(1)
	_, other := b.run(2)
	c := b.client()
	exited, renamed := b.borrow(c, gone), b.borrow(c, other)
	b.fall()
	p.become(attest.ErrExited)
	b.load(lent("nurse", "unix.uid", "1000"))
	b.rise()
	over(t, exited, attest.ErrExited)
	over(t, renamed, workload.ErrNoIdentity) // the same ID, or none
}

func TestBorrowWaitsForTheAgent(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(func(o *broker.ClientOptions) { o.Wait = 50 * time.Millisecond })
	known := b.borrow(c, r)
	b.fall()
	for _, ref := range []attest.Reference{r, someConn} { // also of a process that is known
		_, err := c.Borrow(context.Background(), ref)
		var refusal *workload.Refusal
		if !errors.Is(err, workload.ErrUnavailable) || !errors.As(err, &refusal) {
			t.Fatalf("%v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Borrow(ctx, ref); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	if err := known.Err(); err != nil {
		t.Error(err)
	}
	if !c.Status().Away {
		t.Error("the agent is not seen to be away")
	}
	got := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		l, err := c.Borrow(ctx, r)
		if err == nil {
			l.Close()
		}
		got <- err
	}()
	b.rise()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if c.Status().Away {
		t.Error("the agent is not seen to be back")
	}
}

func TestNoSVIDBeyondItsEnd(t *testing.T) {
	p := portal()
	p.X509TTL = 2 * time.Second
	b := serve(t, []*workload.Entry{p})
	_, r := b.run(1)
	l := b.borrow(b.client(), r)
	b.fall()
	for {
		changed, asked := l.Changed(), time.Now()
		svid, err := l.GetX509SVID()
		if err != nil {
			if !errors.Is(err, workload.ErrUnavailable) || !errors.Is(l.Err(), workload.ErrUnavailable) {
				t.Errorf("%v, %v", err, l.Err())
			}
			break
		}
		if asked.After(svid.Certificates[0].NotAfter) {
			t.Fatal("an SVID that has ended")
		}
		<-changed
	}
	changed := l.Changed()
	b.rise()
	<-changed
	if _, err := l.GetX509SVID(); err != nil {
		t.Errorf("after the agent is back: %v", err)
	}
}

func TestIssuerThatFails(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	b.authority.set(errors.New("the authority is away"))
	_, r := b.run(1)
	c := b.client(func(o *broker.ClientOptions) { o.Wait = 2 * time.Second }) // in which it answers
	_, err := c.Borrow(context.Background(), r)
	var refusal *workload.Refusal
	if !errors.Is(err, workload.ErrUnavailable) || !errors.As(err, &refusal) {
		t.Fatalf("%v", err)
	}
	if _, _, reported := b.seen.refused(refusal.Reference); !reported {
		t.Errorf("%v is not in the agent's trail", refusal)
	}
	if c.Status().Away {
		t.Error("an agent that says so is not away")
	}
}

func TestClose(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client()
	l := b.borrow(c, r)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	over(t, l, workload.ErrClosed)
	if _, err := c.Borrow(t.Context(), r); !errors.Is(err, workload.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// Whoever has taken the agent's place on the socket is not believed.
func TestImpostor(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client(func(o *broker.ClientOptions) {
		o.Wait = 50 * time.Millisecond
		o.Verify = broker.ServedBy(64999)
	})
	if _, err := c.Borrow(context.Background(), r); !errors.Is(err, workload.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	pipe, other := net.Pipe()
	defer pipe.Close()
	defer other.Close()
	if err := broker.ServedBy(0)(pipe); err == nil {
		t.Error("a pipe was taken")
	}
}

// liar answers with whatever it likes.
type liar struct {
	spiffe.UnimplementedAPIServer
	answer *spiffe.SubscribeToX509SVIDResponse
}

func (l liar) SubscribeToX509SVID(_ *spiffe.SubscribeToX509SVIDRequest, s spiffe.API_SubscribeToX509SVIDServer) error {
	if err := s.Send(l.answer); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func TestAnswersThatAreNotSound(t *testing.T) {
	b := serve(t, []*workload.Entry{portal(), lent("nurse", "unix.uid", "1001")})
	_, r := b.run(1)
	nurse, n := b.run(2)
	nurse.facts = sel("unix.uid", "1001")
	_, good, err := b.ask(b.raw(), r)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := b.ask(b.raw(), n)
	if err != nil {
		t.Fatal(err)
	}
	foreign := newAuthority(t)
	b.fall()
	one := func(change func(*spiffe.X509SVID)) *spiffe.SubscribeToX509SVIDResponse {
		g := good.GetSvids()[0]
		s := &spiffe.X509SVID{SpiffeId: g.GetSpiffeId(), X509Svid: g.GetX509Svid(), X509SvidKey: g.GetX509SvidKey(), Bundle: g.GetBundle()}
		change(s)
		return &spiffe.SubscribeToX509SVIDResponse{Svids: []*spiffe.X509SVID{s}}
	}
	for i, tt := range []struct {
		name   string
		answer *spiffe.SubscribeToX509SVIDResponse
	}{
		{"BA 5.2.1 no SVID", &spiffe.SubscribeToX509SVIDResponse{}},
		{"BA 4.6 no ID", one(func(s *spiffe.X509SVID) { s.SpiffeId = "" })},
		{"BA 4.6 no chain", one(func(s *spiffe.X509SVID) { s.X509Svid = nil })},
		{"BA 4.6 no key", one(func(s *spiffe.X509SVID) { s.X509SvidKey = nil })},
		{"BA 4.6 no bundle", one(func(s *spiffe.X509SVID) { s.Bundle = nil })},
		{"another's ID", one(func(s *spiffe.X509SVID) { s.SpiffeId = "spiffe://clinic.test/nurse" })},
		{"another's key", one(func(s *spiffe.X509SVID) { s.X509SvidKey = other.GetSvids()[0].GetX509SvidKey() })},
		{"another's root", one(func(s *spiffe.X509SVID) { s.Bundle = foreign.root.Raw })},
		{"no certificate", one(func(s *spiffe.X509SVID) { s.X509Svid = bytes.Repeat([]byte{0x30}, 100) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := fmt.Sprintf("%s/%d.sock", b.dir, i)
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			s := grpc.NewServer()
			spiffe.RegisterAPIServer(s, liar{answer: tt.answer})
			done := make(chan error, 1)
			go func() { done <- s.Serve(l) }()
			defer func() {
				s.Stop()
				<-done
			}()
			c := b.client(func(o *broker.ClientOptions) { o.Socket, o.Wait = socket, 60*time.Millisecond })
			defer c.Close()
			if _, err := c.Borrow(context.Background(), r); !errors.Is(err, workload.ErrUnavailable) {
				t.Errorf("%v", err)
			}
		})
	}
}

// BenchmarkRoundTrip is Borrow without the kernel's part: what the protocol itself costs, at both ends.
func BenchmarkRoundTrip(b *testing.B) {
	w := serve(b, []*workload.Entry{portal()})
	w.again(someConn, newProcess("unix.uid", "1000"))
	c := w.client()
	held := w.borrow(c, someConn)
	defer held.Close()
	b.ReportAllocs()
	for b.Loop() {
		l, err := c.Borrow(b.Context(), someConn)
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

// Connections that a process opens at once share an answer, but nobody is content with one to a question that was asked
// before it came.
func TestSharedAnswersAreNoOlderThanTheirQuestions(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client()
	b.borrow(c, r)
	looked, goOn := b.stall()
	first := make(chan error, 1)
	go func() {
		_, err := c.Borrow(b.ctx(), r)
		first <- err
	}()
	<-looked
	b.again(r, newProcess("unix.uid", "1001"))
	const many = 64
	others := make(chan error, many)
	for range many {
		go func() {
			_, err := c.Borrow(b.ctx(), r)
			others <- err
		}()
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
	for range many {
		if err := <-others; !errors.Is(err, workload.ErrNoIdentity) {
			t.Errorf("%v", err)
		}
	}
	settled(t, c, broker.ClientStatus{})
}

// Whoever gives up waiting takes nobody else's answer along, and a question that nobody waits for is given up.
func TestWaitingForASharedAnswerEnds(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	_, r := b.run(1)
	c := b.client()
	b.borrow(c, r)
	looked, goOn := b.stall()
	impatient, giveUp := context.WithCancel(b.ctx())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.Borrow(impatient, r)
		first <- err
	}()
	<-looked
	go func() {
		_, err := c.Borrow(b.ctx(), r)
		second <- err
	}()
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := <-second; err != nil { // though the agent has not answered the first question yet
		t.Error(err)
	}
	close(goOn)
}
