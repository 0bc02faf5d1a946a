package daemon

import (
	"net"
	"sync"
)

// announced is a listener that tells when it has been closed: only then may its address be opened anew.
type announced struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func announce(l net.Listener) *announced { return &announced{Listener: l, closed: make(chan struct{})} }

// Close implements net.Listener.
func (a *announced) Close() error {
	err := a.Listener.Close()
	a.once.Do(func() { close(a.closed) })
	return err
}
