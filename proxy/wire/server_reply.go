package wire

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

// Buffering is what a Response's Body may offer: how many bytes can be read without waiting for anybody. The engine then
// gathers these before it writes, and need not guess from a read that was short.
type Buffering interface{ Buffered() int }

var (
	errStatus = errors.New("wire: the answer has no final status")
	errNoBody = errors.New("wire: the answer announces a body that it does not have")
	errLonger = errors.New("wire: the answer's body is longer than was announced")
	errNoneAt = errors.New("wire: the answer's body gives nothing, again and again")
)

const (
	// A chunk's size stands before its data, and CRLF behind it and, at the end, the last chunk.
	chunkRoom = len("00020000\r\n")
	chunkTail = len("\r\n0\r\n\r\n")
	// longReply is from which length on an answer is moved in pieces.
	longReply = 4 * deskSize
	// taking is how much of an answer its peer must have taken before large pieces are used for it, above TLS and below:
	// by then it reads, and what the kernel's buffers hold is not all. Those of thousands that ask for much and read
	// nothing would hold a quarter of a megabyte each.
	taking = 2 << 20
)

// middle is what a long answer is moved in before its peer has proved to read.
type middle [longReply + pieceRoom]byte

var middles = sync.Pool{New: func() any { return new(middle) }}

// send writes an answer, and says how many bytes of its body have gone out. A body that did not come whole is an error,
// and so is one that did not go out: then the connection must end.
func (a *admitted) send(r *Response, to asked) (int64, error) {
	if r.Status < 200 || r.Status > 599 {
		return 0, errStatus
	}
	// RFC 9110 §6.4.1, RFC 9112 §6.3: these have no body, whatever their fields say.
	bare := to.head || r.Status == 204 || r.Status == 304
	length := r.Length
	if r.Body == nil && !bare {
		if length > 0 {
			return 0, errNoBody
		}
		length = 0
	}
	d := a.server.stores.desk()
	w := &writer{a: a, desk: d, buf: d.buf[:], left: length}
	defer w.release()
	if err := w.head(r, to, length, bare); err != nil {
		return 0, err
	}
	if bare || r.Body == nil {
		return 0, w.flush()
	}
	n, err := w.stream(r.Body)
	if err == nil {
		a.resets(false)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// writer puts together what is written at a time: the head, if it has not gone out, and a piece of the body.
type writer struct {
	a       *admitted
	desk    *desk
	middle  *middle
	large   *piece // both nil: a desk will do
	buf     []byte
	waiting int   // bytes of the head at the start of buf
	left    int64 // of the body; negative: not known
	chunked bool
}

func (w *writer) release() {
	w.reduce()
	w.a.server.stores.desks.Put(w.desk)
}

// head writes the head to the buffer, or out when it is too large for it.
func (w *writer) head(r *Response, to asked, length int64, bare bool) (err error) {
	b := http1.AppendStatusLine(w.buf[:0], r.Status)
	dated := false
	for _, f := range r.Header {
		if ours(f.Name) {
			continue
		}
		dated = dated || fold(f.Name, "date")
		if b, err = http1.AppendField(b, f.Name, f.Value); err != nil {
			return err
		}
	}
	if !dated { // RFC 9110 §6.6.1
		b = append(b, w.a.server.dates.line(time.Now())...)
	}
	switch {
	case r.Status == 204 || r.Status == 304: // RFC 9110 §8.6: a 204 must not have a length
	case length >= 0:
		b = http1.AppendLength(b, length)
	case bare:
	case to.minor == 0: // RFC 9112 §6.1: HTTP/1.0 knows no chunks; the body ends with the connection
		r.Close = true
		w.a.resets(true)
	default:
		w.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if r.Close {
		b = append(b, "Connection: close\r\n"...) // RFC 9112 §9.6
	}
	b = append(b, "\r\n"...)
	if len(b) <= len(w.buf)/2 {
		w.waiting = len(b)
		return nil
	}
	return w.put(b)
}

// ours reports whether an answer's field of this name is the engine's to write.
func ours(name string) bool {
	return framing(name) || fold(name, "connection") || fold(name, "keep-alive") || fold(name, "proxy-connection") ||
		fold(name, "upgrade") || fold(name, "trailer")
}

// put writes p to the connection.
func (w *writer) put(p []byte) error {
	_, err := w.a.Conn.Write(p)
	if err == nil && w.large != nil {
		err = w.a.bulk.flush()
	}
	if err != nil {
		w.a.cancel()
	}
	return err
}

// flush writes the head, if it is still waiting.
func (w *writer) flush() error {
	if w.waiting == 0 {
		return nil
	}
	n := w.waiting
	w.waiting = 0
	return w.put(w.buf[:n])
}

// enlarge goes over to larger writes, for a peer that has taken some of the body: to a middle one, and then to a piece and
// writes that gather records.
func (w *writer) enlarge(taken int64) {
	head := w.buf[:w.waiting]
	switch {
	case taken >= taking:
		w.large = pieces.Get().(*piece)
		w.buf = w.large[:pieceSize]
		w.a.bulk.gather()
	case w.middle == nil:
		w.middle = middles.Get().(*middle)
		w.buf = w.middle[:]
	default:
		return
	}
	copy(w.buf, head)
	if w.large != nil && w.middle != nil {
		middles.Put(w.middle)
		w.middle = nil
	}
}

// reduce goes back to a desk. The head has gone out.
func (w *writer) reduce() {
	if w.large != nil {
		if w.a.bulk.release() != nil { // each put has flushed: at most TLS's own answer to a new key was left
			w.a.cancel()
		}
		pieces.Put(w.large)
	}
	if w.middle != nil {
		middles.Put(w.middle)
	}
	w.middle, w.large, w.buf = nil, nil, w.desk.buf[:]
}

// stream copies src to the peer. What is there goes out before anybody waits for more, so that events reach the peer as
// they come, and in large pieces where much is there.
func (w *writer) stream(src io.Reader) (sent int64, err error) {
	ready, _ := src.(Buffering)
	switch {
	case w.left > int64(longReply):
		w.enlarge(0)
	case w.left < 0 && (ready == nil || ready.Buffered() == 0):
		// The first piece may be long in coming, and the head tells that the answer has begun.
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	for {
		at := w.waiting
		room := len(w.buf) - at
		if w.chunked {
			at += chunkRoom
			room -= chunkRoom + chunkTail
		}
		if w.left >= 0 {
			room = int(min(int64(room), w.left))
		}
		n, full, rerr := fill(src, ready, w.buf[at:at+room])
		if w.left >= 0 {
			w.left -= int64(n)
		}
		ended := errors.Is(rerr, io.EOF)
		if n > 0 || ended && w.chunked {
			if err := w.piece(at, n, ended); err != nil {
				return sent, err
			}
			sent += int64(n)
		}
		switch {
		case ended && w.left <= 0:
			return sent, w.flush()
		case rerr != nil:
			return sent, rerr
		case w.left == 0:
			if err := w.flush(); err != nil {
				return sent, err
			}
			return sent, exhausted(src, w.buf[:1])
		case full && w.large == nil:
			w.enlarge(sent)
		case !full && (w.large != nil || w.middle != nil) && w.left < 0 && n < deskSize:
			w.reduce()
		}
	}
}

// piece writes the head that waits, and n bytes of the body that are at at.
func (w *writer) piece(at, n int, last bool) error {
	head := w.waiting
	w.waiting = 0
	if !w.chunked {
		return w.put(w.buf[:at+n])
	}
	start, end := at, at+n
	if n > 0 {
		var size [chunkRoom]byte
		line := http1.AppendChunk(size[:0], n)
		start -= len(line)
		copy(w.buf[start:], line)
		end += copy(w.buf[end:], "\r\n")
	}
	if last {
		end += copy(w.buf[end:], "0\r\n\r\n")
	}
	start -= head
	copy(w.buf[start:], w.buf[:head])
	return w.put(w.buf[start:end])
}

// fill reads into p until it is full or more would have to be waited for.
func fill(src io.Reader, ready Buffering, p []byte) (n int, full bool, err error) {
	for empty := 0; n < len(p) && err == nil; {
		var m int
		m, err = src.Read(p[n:])
		if m < 0 || m > len(p)-n {
			return n, false, errNoneAt
		}
		n += m
		switch {
		case m == 0 && err == nil:
			if empty++; empty > 100 {
				err = errNoneAt
			}
		case ready == nil || ready.Buffered() == 0:
			return n, n == len(p), err
		}
	}
	return n, n == len(p), err
}

// exhausted wants the end of a body of which all that was announced has come.
func exhausted(src io.Reader, spare []byte) error {
	for range 100 {
		switch n, err := src.Read(spare); {
		case n > 0:
			return errLonger
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
	return errNoneAt
}
