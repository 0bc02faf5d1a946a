package proxy

import (
	"net"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A process opens many connections in one identity's name, and what becomes of the identity concerns all of them at once:
// one goroutine follows it, whatever the number of connections that rest on it.

// followed are the identities that connections rest on.
type followed struct {
	mu  sync.Mutex
	all map[lease]*follower
}

// lease tells one lending of an identity from another: whatever ends with the same event is one.
type lease struct {
	id    spiffeid.ID
	ended <-chan struct{}
}

// follower is an identity with the connections that rest on it.
type follower struct {
	lease
	caller Caller        // of the first connection; closed when the last has gone
	gone   chan struct{} // closed when the last has gone

	conns map[*Local]net.Conn // guarded by followed's mutex

	mu     sync.Mutex
	serial string // of the SVID that connections to services are opened with
}

// follow lets c, whose caller is l's, live as long as its identity does.
func (e *Egress) follow(c net.Conn, l *Local) {
	is := lease{l.caller.ID(), l.caller.Ended()}
	e.followed.mu.Lock()
	defer e.followed.mu.Unlock()
	f := e.followed.all[is]
	if f == nil {
		f = &follower{lease: is, caller: l.caller, gone: make(chan struct{}), conns: map[*Local]net.Conn{}}
		if is.ended != nil {
			if e.followed.all == nil {
				e.followed.all = map[lease]*follower{}
			}
			e.followed.all[is] = f
		}
		go e.attend(f)
	}
	f.conns[l], l.rests = c, f
}

// unfollow says that l's connection has ended, and gives its caller back.
func (e *Egress) unfollow(l *Local) {
	f := l.rests
	if f == nil {
		return
	}
	// A process that exits closes its connections before it is seen to be gone.
	if l.caller.Err() != nil {
		e.letGo(f)
	}
	if l.caller != f.caller {
		_ = l.caller.Close()
	}
	e.followed.mu.Lock()
	defer e.followed.mu.Unlock()
	delete(f.conns, l)
	if len(f.conns) > 0 {
		return
	}
	if e.followed.all[f.lease] == f {
		delete(e.followed.all, f.lease)
	}
	close(f.gone)
}

// attend cuts the connections of f when their identity ends, whatever answers are under way on them, and takes each new
// bundle to the connections that were opened in this identity's name. Those that were opened with an SVID which has been
// renewed, or whose process is gone, are let go.
func (e *Egress) attend(f *follower) {
	defer func() { _ = f.caller.Close() }()
	for {
		changed := f.caller.Changed() // first: what changes from here on closes it
		if bundle, err := f.caller.GetX509BundleForTrustDomain(f.id.TrustDomain()); err == nil {
			e.Pool.Trust(f.id, bundle)
		}
		if svid, err := f.caller.GetX509SVID(); err == nil {
			e.renewed(f, svid.Certificates[0].SerialNumber.String())
		}
		select {
		case <-changed:
			continue
		case <-f.ended:
			e.cut(f)
			e.letGo(f)
			<-f.gone
		case <-f.gone:
			if f.caller.Err() != nil { // the last connection may have ended before the serial was known
				e.letGo(f)
			}
		}
		return
	}
}

// cut closes the connections of f, but for those on which nothing has been answered yet: their first call is refused. One
// that comes later has a follower of its own, which finds the end at once.
func (e *Egress) cut(f *follower) {
	e.followed.mu.Lock()
	if e.followed.all[f.lease] == f {
		delete(e.followed.all, f.lease)
	}
	conns := make([]net.Conn, 0, len(f.conns))
	for l, c := range f.conns {
		if !l.spare() {
			conns = append(conns, c)
		}
	}
	e.followed.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// renewed notes the SVID in use, and lets go what was opened with the one before.
func (e *Egress) renewed(f *follower, serial string) {
	f.mu.Lock()
	before := f.serial
	f.serial = serial
	f.mu.Unlock()
	if before != "" && before != serial {
		e.Pool.Drop(f.id, before)
	}
}

// letGo lets go what was opened with the SVID in use.
func (e *Egress) letGo(f *follower) {
	f.mu.Lock()
	serial := f.serial
	f.mu.Unlock()
	e.Pool.Drop(f.id, serial)
}
