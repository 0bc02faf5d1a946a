package wire

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

const (
	// mostDrained is how much of a body that nobody has read is read so that its connection can go on.
	mostDrained = 256 << 10
	drainTime   = time.Second
	// leastDirect is for how many bytes it is worth going round the desk.
	leastDirect = 1 << 10
)

const goOn = "HTTP/1.1 100 Continue\r\n\r\n"

// incoming is a request's body as it comes. It may be read by another goroutine than the exchange's; when the exchange is
// over it cannot be read any more.
type incoming struct {
	call  *call
	ended atomic.Bool // there is no more of it

	mu      sync.Mutex
	framing http1.Body
	left    int64 // of a body whose length is known
	err     error
	large   *piece
	total   int64

	waited time.Duration // since the rate was last kept
	came   int           // since then

	telling sync.Mutex // held while the peer is told to go on, so that an answer comes before that or behind it
	expects bool       // the peer waits for 100 (Continue), and has not been answered
}

func (b *incoming) start(c *call, head *http1.RequestHead) {
	b.call = c
	b.framing.Start(head.Length, &c.on.server.limits)
	b.left = head.Length
	b.ended.Store(b.framing.Done())
	// RFC 9110 §10.1.1: who sees that the body is under way need not ask for it.
	b.expects = head.Continue && c.on.r == c.on.w
}

// Read implements io.Reader.
func (b *incoming) Read(p []byte) (int, error) {
	if b.ended.Load() {
		return 0, io.EOF
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	n, err := b.read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (b *incoming) read(p []byte) (int, error) {
	a := b.call.on
	for {
		if a.r < a.w {
			data, n, err := b.framing.Next(a.buf[a.r:min(a.w, a.r+len(p))])
			a.r += n
			if err != nil {
				return 0, err
			}
			if n := b.give(copy(p, data)); n > 0 || b.ended.Load() {
				return n, b.eof()
			}
			continue
		}
		if b.left > 0 && len(p) >= leastDirect { // what comes is payload and nothing else
			n, err := b.fill(p[:min(int64(len(p)), b.left)])
			if n == 0 {
				return 0, err
			}
			if _, _, err := b.framing.Next(p[:n]); err != nil {
				return 0, err
			}
			return b.give(n), b.eof()
		}
		b.place()
		n, err := b.fill(a.buf)
		if n == 0 {
			return 0, err
		}
		a.w = n
	}
}

// give counts what is passed on.
func (b *incoming) give(n int) int {
	b.total += int64(n)
	if b.left > 0 {
		b.left -= int64(n)
	}
	if b.framing.Done() {
		b.settle()
		b.call.on.server.leavePlace(b.call.on)
		b.ended.Store(true) // from here on the connection is the exchange's own again
	}
	return n
}

func (b *incoming) eof() error {
	if b.ended.Load() {
		return io.EOF
	}
	return nil
}

// place makes the connection's buffer empty, and large where so much has come in chunks that it pays: they cannot go
// round it.
func (b *incoming) place() {
	a := b.call.on
	a.sit()
	if b.large == nil && b.total >= longBody {
		b.large = pieces.Get().(*piece)
		a.buf = b.large[:]
	}
	a.r, a.w = 0, 0
}

// settle gives back what only a long body needs, and keeps what it holds beyond the body.
func (b *incoming) settle() {
	a := b.call.on
	if a.bulk != nil {
		a.bulk.readAhead(false)
	}
	if b.large == nil {
		return
	}
	rest := a.buf[a.r:a.w]
	a.buf = a.desk.buf[:]
	if len(rest) > len(a.buf) {
		a.buf = make([]byte, len(rest))
	}
	a.r, a.w = 0, copy(a.buf, rest)
	pieces.Put(b.large)
	b.large = nil
}

// goOn tells a peer that waits for it to send the body.
func (b *incoming) goOn() (err error) {
	b.telling.Lock()
	defer b.telling.Unlock()
	if b.expects {
		b.expects = false
		_, err = io.WriteString(b.call.on, goOn)
	}
	return err
}

// answered says that the peer will not be told to go on any more, and reports whether it waits for that.
func (b *incoming) answered() (waits bool) {
	b.telling.Lock()
	defer b.telling.Unlock()
	waits, b.expects = b.expects, false
	return waits
}

// fill receives some bytes. The peer must bring so many within the time that it is waited for.
func (b *incoming) fill(p []byte) (int, error) {
	a := b.call.on
	if err := b.goOn(); err != nil {
		a.cancel()
		return 0, err
	}
	if a.bulk != nil && (b.total >= longBody || b.left >= longBody) {
		a.bulk.readAhead(true)
	}
	s := a.server
	need := int(s.RateGrace.Seconds() * float64(s.MinRate))
	for {
		begun := time.Now()
		until := begun.Add(s.RateGrace - b.waited)
		last := b.call.last()
		if !last.IsZero() && last.Before(until) {
			until = last
		}
		if err := a.expire(until); err != nil {
			return 0, err
		}
		n, err := a.Conn.Read(p)
		b.waited += time.Since(begun)
		if b.came += n; b.came >= need {
			b.waited, b.came = 0, 0
		}
		switch {
		case n > 0:
			m := a.bulk.afterwards(a.Conn, p, n)
			b.came += m - n
			return m, nil
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The rate may have been kept by the last bytes before this wait.
			if b.waited < s.RateGrace && (last.IsZero() || time.Now().Before(last)) && !b.stopped() {
				continue
			}
			return 0, err
		}
		a.cancel() // the peer has gone: whoever waits for the exchange is to know first
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
}

// stopped reports whether the exchange is over.
func (b *incoming) stopped() bool {
	a := b.call.on
	a.reading.mu.Lock()
	defer a.reading.mu.Unlock()
	return a.closed
}

// hold takes the answer's side: from now on the peer is not told to go on. It reports whether the connection may be
// kept, as far as the body goes.
func (b *incoming) hold() bool {
	if b.ended.Load() {
		return true
	}
	// RFC 9110 §10.1.1: who has been answered instead of told to go on may send the body, or not.
	waits := b.answered()
	if !b.mu.TryLock() {
		return !waits // somebody reads
	}
	defer b.mu.Unlock()
	return !waits && b.err == nil && b.left <= mostDrained
}

// stop ends the reading, whoever is at it.
func (b *incoming) stop() {
	if b.ended.Load() {
		return
	}
	a := b.call.on
	if !b.mu.TryLock() {
		a.reading.mu.Lock()
		a.closed, a.until = true, time.Unix(1, 0)
		_ = a.SetReadDeadline(a.until)
		a.reading.mu.Unlock()
		b.mu.Lock()
		a.reading.mu.Lock()
		a.closed = false
		a.reading.mu.Unlock()
		if b.err != nil && errors.Is(b.err, os.ErrDeadlineExceeded) {
			b.err = nil // it was this one
		}
	}
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = errOver
	}
}

// drain reads what nobody wanted, up to a bound, and reports whether the body has ended. It follows stop.
func (b *incoming) drain() bool {
	if b.ended.Load() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !errors.Is(b.err, errOver) {
		return false
	}
	a := b.call.on
	if a.expire(time.Now().Add(drainTime)) != nil {
		return false
	}
	// That it has ended is not told to whoever still has it: nobody has read it.
	for came := 0; !b.framing.Done(); {
		if a.r == a.w {
			b.place()
			n, err := a.Conn.Read(a.buf)
			a.w = n
			if came += n; n == 0 && err != nil || came > mostDrained {
				break
			}
		}
		_, n, err := b.framing.Next(a.buf[a.r:a.w])
		if a.r += n; err != nil {
			break
		}
	}
	b.settle()
	return b.framing.Done()
}

// Buffered is how much of a body of known length can be read without waiting.
func (b *incoming) Buffered() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || b.left <= 0 || b.ended.Load() {
		return 0
	}
	return int(min(int64(b.call.on.w-b.call.on.r), b.left))
}
