package proxy

import (
	"errors"
	"sync"
)

var errEnded = errors.New("the identity has ended")

// ending is what the end of its caller's identity means to a connection. Whoever connects after that end is refused in so
// many words, with a decision and a record; but egress hears of the end a moment later, and whoever connects in between must
// not find the line dead and wonder why. So a connection on which nothing has been answered yet is not cut: the call that
// runs on it ends, and it, or else the first that comes, is refused like one of a process that never had an identity, and
// that is the connection's end. Nothing is carried for the caller meanwhile. Who has been answered before is cut off at
// once.
type ending struct {
	mu    sync.Mutex
	heard bool      // an answer has been given, or is on its way
	call  *deadline // the first call, while it waits for the other ward
}

// spare is called when the identity has ended. It reports whether the connection may stay open for its first answer.
func (l *Local) spare() bool {
	l.ending.mu.Lock()
	defer l.ending.mu.Unlock()
	if l.ending.heard {
		return false
	}
	if l.ending.call != nil {
		l.ending.call.end()
	}
	return true
}

// leave lets the end of the identity end the call that d bounds, as long as nothing has been answered. It fails where that
// end has come already.
func (l *Local) leave(d *deadline) error {
	l.ending.mu.Lock()
	defer l.ending.mu.Unlock()
	if l.over() {
		return errEnded
	}
	if !l.ending.heard {
		l.ending.call = d
	}
	return nil
}

// carry says that a reply is to be carried to the caller, which the end of the identity cuts from now on. It fails where
// that end has come already.
func (l *Local) carry() error {
	l.ending.mu.Lock()
	defer l.ending.mu.Unlock()
	if l.over() {
		return errEnded
	}
	l.ending.heard, l.ending.call = true, nil
	return nil
}

// told says that the caller has got a refusal.
func (l *Local) told() {
	l.ending.mu.Lock()
	defer l.ending.mu.Unlock()
	l.ending.heard, l.ending.call = true, nil
}

// over reports whether the identity of the connection's caller has ended for good. One that never had any has not.
func (l *Local) over() bool {
	if l.caller == nil {
		return false
	}
	select {
	case <-l.caller.Ended():
		return true
	default:
		return false
	}
}

// gone is why the identity of the connection's caller may not be used, nil while it may.
func (l *Local) gone() error {
	err := l.caller.Err()
	if err == nil && l.over() {
		err = errEnded
	}
	var r *Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		return r
	}
	return Refuse(CausePeerChanged, "%w", err)
}
