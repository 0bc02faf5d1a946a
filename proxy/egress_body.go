package proxy

import (
	"errors"
	"io"
	"os"
	"sync"
)

// source is a request's body on its way through. It knows how it ended, so that what the caller did is not put down to
// the other end.
type source struct {
	io.Reader
	mu  sync.Mutex
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

// fault is why the caller's body did not come whole, nil when nothing says so.
func (s *source) fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err == nil, errors.Is(s.err, io.EOF):
		return nil
	case errors.Is(s.err, os.ErrDeadlineExceeded):
		return Refuse(CauseTimeout, "the body did not arrive in time")
	}
	return Refuse(CauseMalformed, "the body ended early, or is not framed as HTTP")
}
