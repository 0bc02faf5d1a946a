package wire

import (
	"context"
	"sync"
)

// Hook is a context on which one Cutter can hang. An exchange waits for its caller on one connection and for a server on
// another, and what ends the one must cut the other at once; context.AfterFunc would make seven things of every exchange
// for what hardly ever happens.
type Hook interface {
	context.Context
	// Hang lets c be cut when the context ends before its deadline, which c keeps by itself. False: another hangs here.
	Hang(c Cutter) bool
	// Drop takes c off. False: it has been cut, or is about to be.
	Drop(c Cutter) bool
}

// Cutter can be cut off, by a call in a goroutine of its own.
type Cutter interface{ Cut() }

// ending is a context with a Hook, and with no other way to end before its parent than end. Whoever ends the parent
// calls end, too.
type ending struct {
	context.Context
	cancel context.CancelFunc

	mu   sync.Mutex
	hung Cutter
}

func newEnding(parent context.Context) *ending {
	e := &ending{}
	e.Context, e.cancel = context.WithCancel(parent)
	return e
}

// end ends the context and cuts who hangs on it.
func (e *ending) end() {
	e.cancel()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hung != nil {
		go e.hung.Cut()
		e.hung = nil
	}
}

// Hang implements Hook.
func (e *ending) Hang(c Cutter) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.Err() != nil:
		go c.Cut()
	case e.hung != nil:
		return false
	default:
		e.hung = c
	}
	return true
}

// Drop implements Hook.
func (e *ending) Drop(c Cutter) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hung != c {
		return false
	}
	e.hung = nil
	return true
}
