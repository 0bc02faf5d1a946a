package proxy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
)

// source is a request's body on its way through. It knows how it ended, or that it is being waited for, so that what the
// caller did is not put down to the other end.
type source struct {
	io.Reader
	mu      sync.Mutex
	waiting bool
	err     error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	s.set(true, nil)
	n, err := s.Reader.Read(p)
	s.set(false, err)
	return n, err
}

func (s *source) set(waiting bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting = waiting; err != nil {
		s.err = err
	}
}

// Buffered is how much of the body is here already, as far as the engine says so.
func (s *source) Buffered() int {
	if b, ok := s.Reader.(interface{ Buffered() int }); ok {
		return b.Buffered()
	}
	return 0
}

// Close ends the reading where the engine can end one that waits, and is errors.ErrUnsupported elsewhere.
func (s *source) Close() error {
	if c, ok := s.Reader.(io.Closer); ok {
		return c.Close()
	}
	return errors.ErrUnsupported
}

// fault is why the caller's body did not come whole, nil when nothing says so. late: there is no time left for it.
func (s *source) fault(late bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err == nil && s.waiting && late:
		return Refuse(CauseTimeout, "the body did not arrive in time")
	case s.err == nil, errors.Is(s.err, io.EOF):
		return nil
	case errors.Is(s.err, os.ErrDeadlineExceeded):
		return Refuse(CauseTimeout, "the body did not arrive in time")
	}
	return Refuse(CauseMalformed, "the body ended early, or is not framed as HTTP")
}

// mostGathered is up to what length egress waits for a body before it takes a connection between wards.
const mostGathered = 8 << 10

// gather waits for a short body. One that trickles, or never ends, then costs a local connection and a few kilobytes, and
// not a connection to the other ward as well, which cannot be used again after half a request: else each slow caller would
// cost both hosts a handshake. It costs the others nothing: ingress, too, judges a body when it has all of it.
func (c *outbound) gather() error {
	n := c.request.Length
	if n <= 0 || n > mostGathered || int64(c.body.Buffered()) >= n {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(&c.body, b); err != nil {
		return err
	}
	c.request.Body = bytes.NewReader(b)
	return nil
}
