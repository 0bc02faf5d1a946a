package wire

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

// Bulk is a connection on which TLS stands. TLS reads and writes record by record, of 16 KiB at most, and each costs a
// system call. While a long body runs, a Bulk reads ahead and gathers records, so that one call moves eight of them. At all
// other times it holds no memory and passes everything on.
type Bulk struct {
	net.Conn

	// The side of who reads.
	ahead []byte // nil while nothing is read ahead
	r, w  int
	dry   bool // no Read goes to the connection

	// The side of who writes.
	out []byte // nil while nothing is held back
}

// NewBulk stands on c, which is to be used by it alone.
func NewBulk(c net.Conn) *Bulk { return &Bulk{Conn: c} }

const pieceSize = 128 << 10

// pieces are what long bodies move in. The room around a piece is for a chunk's size and end.
type piece [pieceSize + 64]byte

var longPieces = sync.Pool{New: func() any { return new(piece) }}

// errDry says that what has been read ahead is used up. It is temporary, so that TLS goes on after it.
var errDry error = dryError{}

type dryError struct{}

func (dryError) Error() string   { return "wire: nothing more has been read ahead" }
func (dryError) Timeout() bool   { return true }
func (dryError) Temporary() bool { return true }

// Read implements net.Conn.
func (b *Bulk) Read(p []byte) (int, error) {
	if b.r == b.w {
		switch {
		case b.dry:
			return 0, errDry
		case b.ahead == nil:
			return b.Conn.Read(p)
		}
		n, err := b.Conn.Read(b.ahead)
		if b.r, b.w = 0, n; n == 0 {
			return 0, err
		} // an error comes again at the next Read
	}
	n := copy(p, b.ahead[b.r:b.w])
	b.r += n
	return n, nil
}

// readAhead begins or ends the reading ahead. It reports false when bytes that were read are left over.
func (b *Bulk) readAhead(on bool) bool {
	if on == (b.ahead != nil) {
		return true
	}
	if on {
		b.ahead = longPieces.Get().(*piece)[:]
		return true
	}
	clean := b.r == b.w
	b.r, b.w = 0, 0
	longPieces.Put((*piece)(b.ahead))
	b.ahead = nil
	return clean
}

// Write implements net.Conn.
func (b *Bulk) Write(p []byte) (int, error) {
	if b.out == nil {
		return b.Conn.Write(p)
	}
	if len(b.out)+len(p) > cap(b.out) {
		if err := b.flush(); err != nil {
			return 0, err
		}
		if len(p) > cap(b.out) {
			return b.Conn.Write(p)
		}
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// gather holds back what is written until release.
func (b *Bulk) gather() {
	if b.out == nil {
		b.out = longPieces.Get().(*piece)[:0]
	}
}

func (b *Bulk) flush() error {
	if len(b.out) == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out)
	b.out = b.out[:0]
	return err
}

// release writes what is held back, and holds back no more.
func (b *Bulk) release() error {
	if b.out == nil {
		return nil
	}
	err := b.flush()
	longPieces.Put((*piece)(b.out[:cap(b.out)]))
	b.out = nil
	return err
}

// SyscallConn implements syscall.Conn where the connection does.
func (b *Bulk) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := b.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
