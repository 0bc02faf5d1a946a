package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/wardmesh/ward/proxy/wire"
)

// What a connection rests on may end before the connection does: an identity is denied, a workload loses a service, a
// CA is withdrawn. Each call asks again, but a call may last for minutes, so connections are looked at when such a
// thing changes, and what no longer stands is cut at once.

// connections is the set of connections that are open, each with the question whether it may stay so.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]func() error
}

func (s *connections) add(c net.Conn, check func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[net.Conn]func() error{}
	}
	s.open[c] = check
}

func (s *connections) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// recheck closes the connections that may not stay, and counts them.
func (s *connections) recheck() int {
	s.mu.Lock()
	checks := make(map[net.Conn]func() error, len(s.open))
	for c, check := range s.open {
		checks[c] = check
	}
	s.mu.Unlock()
	cut := 0
	for c, check := range checks {
		if check() != nil {
			go wire.Sever(c)
			cut++
		}
	}
	return cut
}

// LiveIngress is one service's ingress ward whose rules can be replaced while it serves. A call keeps to the rules
// under which it began, all of them; the next call meets the new ones.
type LiveIngress struct {
	rules atomic.Pointer[Ingress]
	conns connections
	crowd crowd
	known memory // chains of callers
}

// NewLiveIngress begins with the rules of in.
func NewLiveIngress(in *Ingress) *LiveIngress {
	l := &LiveIngress{}
	l.rules.Store(in)
	return l
}

// Replace makes in's rules those of the next calls, and cuts connections that may not stay under them. The identity
// and the service's ID must be those of before.
func (l *LiveIngress) Replace(in *Ingress) int {
	l.rules.Store(in)
	return l.Recheck()
}

// Recheck cuts the connections whose caller has been denied, may not call the service any more, or is no longer
// vouched for by a CA that counts. It returns how many there were.
func (l *LiveIngress) Recheck() int { return l.conns.recheck() }

// Server is the listener's side: it serves by whatever rules hold when a connection or a call begins.
func (l *LiveIngress) Server() *wire.Server {
	first := l.rules.Load()
	return &wire.Server{
		TLS:      l.known.serverTLS(first.Self, first.Now),
		Balancer: func(a netip.Addr) bool { return l.rules.Load().Service.balancer(a) },
		Accept: func(_ context.Context, c net.Conn, state *tls.ConnectionState) (any, error) {
			in := l.rules.Load()
			p, err := in.accept(c, state, &l.known)
			if err != nil {
				return nil, err
			}
			leave, err := l.crowd.enter(p.ID, in.Service)
			if err != nil {
				p.timer.Stop()
				in.outside(c.RemoteAddr().String(), p.ID.String(), err)
				return nil, err
			}
			l.conns.add(c, func() error { return l.rules.Load().entitled(p) })
			p.gone = func() {
				l.conns.remove(c)
				leave()
			}
			// A CA that was withdrawn between the handshake and this moment was not looked for here.
			if err := l.rules.Load().vouched(p); err != nil {
				p.end()
				return nil, err
			}
			return p, nil
		},
		Closed: func(conn any) { conn.(*Peer).end() },
		Failed: func(remote net.Addr, err error) {
			refusal := Refuse(CauseNoIdentity, "TLS: %w", err)
			if errors.Is(err, wire.ErrPreface) {
				refusal = Refuse(CauseMalformed, "%w", err)
			}
			l.rules.Load().outside(remote.String(), "", refusal)
		},
		Whose:  func(conn any) any { return conn.(*Peer).ID },
		Handle: func(x *wire.Exchange) { l.rules.Load().Serve(x) },
		Refuse: func(conn any, remote string, status int) *wire.Response {
			return l.rules.Load().outside(remote, conn.(*Peer).ID.String(), Refuse(statusCause(status), "not acceptable HTTP (%d)", status))
		},
		Defect: func(stack []byte) { l.rules.Load().Observe.Defect(HopIngress, stack) },
	}
}
