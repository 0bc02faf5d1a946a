package wire

import (
	"bytes"
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
	piece *piece // nil while nothing is read ahead
	ahead []byte // what has been, and is not used yet
	dry   bool   // no Read goes to the connection

	// The side of who writes; who reads writes, too, where TLS has a peer's new key to answer.
	mu  sync.Mutex
	out []byte // nil while nothing is held back
}

// NewBulk stands on c, which is to be used by it alone.
func NewBulk(c net.Conn) *Bulk { return &Bulk{Conn: c} }

const (
	pieceSize = 128 << 10
	// pieceRoom is for a chunk's size and end, and for the headers and tags of the records that a piece is cut into.
	pieceRoom = 1 << 10
	// longBody is from where reading ahead below TLS pays.
	longBody = 64 << 10
	// record is what one of TLS holds.
	record = 16 << 10
)

// piece is what long bodies are moved in.
type piece [pieceSize + pieceRoom]byte

var pieces = sync.Pool{New: func() any { return new(piece) }}

// errDry says that what has been read ahead is used up. It is temporary, so that TLS goes on after it.
var errDry error = dryError{}

type dryError struct{}

func (dryError) Error() string   { return "wire: nothing more has been read ahead" }
func (dryError) Timeout() bool   { return true }
func (dryError) Temporary() bool { return true }

// Read implements net.Conn.
func (b *Bulk) Read(p []byte) (int, error) {
	if len(b.ahead) == 0 {
		switch {
		case b.dry:
			return 0, errDry
		case b.piece == nil:
			return b.Conn.Read(p)
		}
		n, err := b.Conn.Read(b.piece[:])
		if n == 0 {
			return 0, err
		} // else an error comes again at the next Read
		b.ahead = b.piece[:n]
	}
	n := copy(p, b.ahead)
	if b.ahead = b.ahead[n:]; len(b.ahead) == 0 {
		b.ahead = nil
	}
	return n, nil
}

// readAhead begins or ends the reading ahead. It reports false when bytes that were read are left over: the next Reads
// give them.
func (b *Bulk) readAhead(on bool) bool {
	switch {
	case on && b.piece == nil:
		b.piece = pieces.Get().(*piece)
		b.ahead = b.piece[:copy(b.piece[:], b.ahead)]
	case !on && b.piece != nil:
		b.ahead = bytes.Clone(b.ahead)
		pieces.Put(b.piece)
		b.piece = nil
	}
	return len(b.ahead) == 0
}

// afterwards reads on from over, which stands on b, into p behind its first n bytes: only what has been read ahead, and
// only while there is room for whole records. An error comes again.
func (b *Bulk) afterwards(over net.Conn, p []byte, n int) int {
	if b == nil || b.piece == nil {
		return n
	}
	b.dry = true
	for len(p)-n >= record {
		m, err := over.Read(p[n:])
		if n += m; err != nil || m == 0 {
			break
		}
	}
	b.dry = false
	return n
}

// Write implements net.Conn.
func (b *Bulk) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out == nil {
		return b.Conn.Write(p)
	}
	if len(b.out)+len(p) > cap(b.out) {
		if err := b.pass(); err != nil {
			return 0, err
		}
		if len(p) > cap(b.out) {
			return b.Conn.Write(p)
		}
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// pass writes what is held back. What fails is not tried again.
func (b *Bulk) pass() error {
	if len(b.out) == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out)
	b.out = b.out[:0]
	return err
}

// gather holds back what is written until flush. A Bulk that is none gathers nothing.
func (b *Bulk) gather() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out == nil {
		b.out = pieces.Get().(*piece)[:0]
	}
}

// flush writes what is held back.
func (b *Bulk) flush() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pass()
}

// release writes what is held back, and holds back no more.
func (b *Bulk) release() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out == nil {
		return nil
	}
	err := b.pass()
	pieces.Put((*piece)(b.out[:cap(b.out)]))
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
