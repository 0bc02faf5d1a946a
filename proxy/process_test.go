package proxy_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
)

// process is a local process: what the kernel and the agent would know of it.
type process struct {
	*identity
	id      spiffeid.ID
	refused error                 // it is known to have no identity
	unknown error                 // it could not be attested
	ended   atomic.Pointer[error] // why it is not what it was, once it is not
	over    chan struct{}         // closed when the identity has ended
	update  chan struct{}         // closed when SVID or bundle has changed; nil never
	closed  chan struct{}         // gets one value for each connection of it that egress has let go
}

func (p *process) ID() spiffeid.ID { return p.id }

func (p *process) Changed() <-chan struct{} { return p.update }

func (p *process) Ended() <-chan struct{} { return p.over }

func (p *process) Process() string { return "pid 42, uid 1000" }

func (p *process) Err() error {
	if err := p.ended.Load(); err != nil {
		return *err
	}
	return nil
}

func (p *process) Close() error {
	select {
	case p.closed <- struct{}{}:
	default: // nobody counts them
	}
	return nil
}

// callers is the kernel's part: the listener says which process is at the other end of a connection.
type callers struct{}

type local struct {
	net.Conn
	process *process
}

// NetConn is the socket, of which the server sees whether the process has gone.
func (l *local) NetConn() net.Conn { return l.Conn }

func (callers) Caller(_ context.Context, c net.Conn) (proxy.Caller, error) {
	switch p := c.(*local).process; {
	case p.unknown != nil:
		return nil, p.unknown
	case p.refused != nil:
		return nil, p.refused
	default:
		return p, nil
	}
}

type localListener struct {
	net.Listener
	process *process
}

func (l localListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &local{c, l.process}, nil
}

// process makes a local process with an SVID of its own.
func (w *world) process(path string, changes ...func(*process)) *process {
	svid := w.ca.issue(w, path)
	p := &process{identity: newIdentity(svid, w.ca.bundle()), id: svid.ID, over: make(chan struct{}), closed: make(chan struct{}, 1024)}
	for _, change := range changes {
		change(p)
	}
	return p
}

// local opens egress to a process, on its shared listener or on a service's own, and gives the address.
func (w *world) local(p *process, service *proxy.Service) string {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open(p, service)
}

// open is local for who holds w.mu.
func (w *world) open(p *process, service *proxy.Service) string {
	w.Helper()
	l, s := listen(w), w.egress.Server(service)
	if w.bounds != nil {
		w.bounds(s)
	}
	w.serve(s, localListener{l, p})
	w.servers[l.Addr().String()] = s
	return l.Addr().String()
}

// egressAt is the server of egress that listens there.
func (w *world) egressAt(address string) *wire.Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.servers[address]
}

var errGone = errors.New("the process has exited")
