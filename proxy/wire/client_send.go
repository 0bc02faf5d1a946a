package wire

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

// buffered is a body that knows how much of itself is here already: a Read of so much, or less, does not wait.
type buffered interface{ Buffered() int }

// here is how much of body can be read without waiting, as far as it says so.
func here(body io.Reader) int {
	switch b := body.(type) {
	case buffered:
		return b.Buffered()
	case interface{ Len() int }: // bytes.Reader, strings.Reader
		return b.Len()
	}
	return 0
}

// compose writes r's head into f.out, with as much of the body as is here, and says how much of the body is then left:
// -1 when it is chunked and has not ended.
func (f *flight) compose(r *Request) (left int64, err error) {
	out, err := http1.AppendRequestLine(f.out[:0], r.Method, r.Target)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if out, err = http1.AppendField(out, "Host", r.Host); err != nil { // RFC 9110 §7.2: first
		return 0, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	for i := range r.Header {
		if HopByHop(r.Header[i].Name) {
			continue
		}
		if out, err = http1.AppendField(out, r.Header[i].Name, r.Header[i].Value); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrRequest, err)
		}
	}
	if left = max(r.Length, -1); r.Body == nil {
		left = 0
	}
	switch {
	case left < 0:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case left > 0, r.Method == "POST", r.Method == "PUT", r.Method == "PATCH": // RFC 9110 §8.6
		out = http1.AppendLength(out, left)
	}
	out = append(out, "\r\n"...)
	if left != 0 {
		out, left, err = f.first(out, r.Body, left)
	}
	f.out = out
	return left, err
}

// first appends the part of the body that is here, as far as a peer takes it without reading.
func (f *flight) first(out []byte, body io.Reader, left int64) (_ []byte, rest int64, err error) {
	n := min(here(body), len(f.in))
	if left > 0 {
		n = int(min(int64(n), left))
	}
	if n <= 0 {
		return out, left, nil
	}
	n, err = body.Read(f.in[:n]) // nothing of the reply is there yet
	eof := errors.Is(err, io.EOF)
	if err != nil && !eof {
		return out, left, fmt.Errorf("%w: %w", ErrRequestBody, err)
	}
	if left > 0 {
		if left -= int64(n); eof && left > 0 {
			return out, left, fmt.Errorf("%w: %w", ErrRequestBody, io.ErrUnexpectedEOF)
		}
		return append(out, f.in[:n]...), left, nil
	}
	if n > 0 {
		out = http1.AppendChunk(out, n)
		out = append(out, f.in[:n]...)
		out = append(out, "\r\n"...)
	}
	if eof {
		return append(http1.AppendChunk(out, 0), "\r\n"...), 0, nil
	}
	return out, left, nil
}

// upload sends what remains of a request's body, in a goroutine of its own, while the reply is waited for.
type upload struct {
	conn *conn
	body io.Reader
	left int64         // of the body; -1: it is chunked
	done chan struct{} // closed when nothing of it runs any more

	mu      sync.Mutex
	headed  bool // the reply's head has come
	whole   bool // the body has been read to its end
	stopped bool // what remains of it is not wanted
	err     error
}

// run sends the body. A body that fails ends the connection, so that the other end does not take it for whole.
func (u *upload) run(written func()) {
	defer close(u.done)
	err := u.send()
	if late := u.conn.bulk.release(); err == nil {
		err = late
	}
	u.mu.Lock()
	u.err = err
	failed := errors.Is(err, ErrRequestBody) && !u.stopped // else the reply is being read, and the connection ends with it
	u.mu.Unlock()
	if failed {
		u.conn.abort()
	}
	written()
}

// room is kept before a piece for the size of a chunk, and behind it for its end and the body's.
const room = 24 // of pieceRoom

// part is what a body is sent in that is short, or comes slowly: then a piece would hardly ever be filled, and many
// callers who send a byte now and then would hold one each.
type part [deskSize + pieceRoom]byte

var parts = sync.Pool{New: func() any { return new(part) }}

// send sends part by part, or piece by piece while so much comes. A body that panics is one that did not come whole.
func (u *upload) send() (err error) {
	small := parts.Get().(*part)
	var large *piece
	defer func() {
		if v := recover(); v != nil { // who knows who still has them
			err = fmt.Errorf("%w: %w", ErrRequestBody, caught(v))
			return
		}
		parts.Put(small)
		if large != nil {
			pieces.Put(large)
		}
	}()
	p, size := small[:], deskSize
	for {
		n, err := u.fill(p[room : room+size])
		if err != nil {
			return err
		}
		out := p[room : room+n]
		if u.left < 0 {
			out = chunk(p, n, u.whole)
		}
		if _, err := u.conn.Write(out); err != nil {
			return err
		}
		if err := u.conn.bulk.flush(); err != nil {
			return err
		}
		switch {
		case u.whole: // this goroutine alone sets it
			return nil
		case large == nil && n == size:
			large = pieces.Get().(*piece)
			p, size = large[:], pieceSize
			u.conn.bulk.gather()
		case large != nil && n < deskSize:
			if err := u.conn.bulk.release(); err != nil {
				return err
			}
			pieces.Put(large)
			large, p, size = nil, small[:], deskSize
		}
	}
}

// chunk frames the n bytes at p[room], where there is room for that.
func chunk(p []byte, n int, last bool) []byte {
	var size [room]byte
	s := http1.AppendChunk(size[:0], n)
	start, end := room-len(s), room+n
	if n == 0 {
		start, end = room, room
	} else {
		copy(p[start:], s)
		end += copy(p[end:], "\r\n")
	}
	if last {
		end += copy(p[end:], "0\r\n\r\n")
	}
	return p[start:end]
}

// fill reads one piece: a Read's worth, and what is here besides.
func (u *upload) fill(p []byte) (n int, err error) {
	for n == 0 || n < len(p) && here(u.body) > 0 {
		u.mu.Lock()
		stopped := u.stopped
		u.mu.Unlock()
		if stopped {
			return 0, errStopped
		}
		want := p[n:]
		if u.left >= 0 {
			want = want[:min(int64(len(want)), u.left)]
		}
		m, err := u.body.Read(want)
		n += m
		if u.left > 0 {
			u.left -= int64(m)
		}
		eof := errors.Is(err, io.EOF)
		switch {
		case u.left == 0, u.left < 0 && eof:
			u.mu.Lock()
			u.whole = true
			u.mu.Unlock()
			return n, nil
		case eof:
			return 0, fmt.Errorf("%w: %w", ErrRequestBody, io.ErrUnexpectedEOF)
		case err != nil:
			return 0, fmt.Errorf("%w: %w", ErrRequestBody, err)
		}
	}
	return n, nil
}

// unfinished reports whether there is more of the body to be read.
func (u *upload) unfinished() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.whole
}

// stop ends the upload. Where the body can be closed, nobody reads it any more afterwards.
func (u *upload) stop() {
	u.mu.Lock()
	u.stopped = true
	u.mu.Unlock()
	_ = u.conn.SetWriteDeadline(time.Unix(1, 0))
	if c, ok := u.body.(io.Closer); ok && !errors.Is(c.Close(), errors.ErrUnsupported) {
		<-u.done
	}
}

// failed is why the body did not come whole, nil when it did or when nothing says so yet.
func (u *upload) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if errors.Is(u.err, ErrRequestBody) && !u.stopped {
		return u.err
	}
	return nil
}
