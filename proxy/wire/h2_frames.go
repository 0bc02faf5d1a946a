package wire

import (
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// The frames of RFC 9113 §6, as far as they are told apart here.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePush         = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindow       = 0x8
	frameContinuation = 0x9

	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	frameHeader = 9 // bytes
)

const h2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 §3.4

// What a peer may do that costs it less than it costs Ward; see allowance.
const (
	h2Talk        = 1000 // frames that carry nothing: RESET_STREAM, SETTINGS, PING, PRIORITY, WINDOW_UPDATE, small DATA
	h2TalkRate    = 50   // of them more a second
	h2TalkEarned  = 4    // and for each piece that is written to the peer: its answers to that
	h2Abandoned   = 200  // exchanges that are given up before their answer
	h2AbandonRate = 10   // of them more a second
	h2SmallData   = 16   // bytes; less, in a DATA frame that ends nothing, is talk
	h2Parts       = 32   // frames of one header block
	h2Waiting     = 600  // requests that no handler has taken up: more than the engine holds
	h2WaitingSize = 4 << 20
	h2Farewell    = 2 * time.Second // for GOAWAY to reach the peer
)

// poison is what the engine is given in place of what must not reach it: SETTINGS on a stream, on which it tells the
// peer PROTOCOL_ERROR and closes (RFC 9113 §6.5).
var h2Poison = [frameHeader]byte{3: frameSettings, 8: 1}

// frames is a connection whose frames are read along on their way to the engine. DATA and what concerns flow pass as they
// are; a header block stays here, and a number goes on in its place; a peer that breaks RFC 9113, or asks too much, is
// reported once and gets no further.
type frames struct {
	net.Conn
	headBytes   int
	headTimeout time.Duration
	report      func(status int)
	defect      func(v any) // learns of a panic; nil: nobody does
	closed      chan struct{}
	once        sync.Once
	streams     atomic.Int64 // opened so far

	// What follows belongs to whoever reads.
	in      []byte
	out     []byte // for the engine
	space   []byte // that out is cut from
	over    bool   // nothing goes on any more
	since   time.Time
	preface int
	got     int // bytes of the frame's header
	header  [frameHeader]byte
	left    int // bytes of its payload
	first   bool
	payload []byte // of a frame that is kept

	hpack  *hpack.Decoder
	list   *fieldList
	spoilt bool   // the decoder has lost the thread
	block  uint32 // the stream whose header block is being read; 0 none
	flags  byte   // of the frame that began it
	parts  int
	bytes  int
	last   uint32          // the highest stream so far
	open   map[uint32]bool // streams whose requests have not ended, as far as the peer has said

	mu      sync.Mutex
	fatal   int // a verdict that somebody else than the reader has found
	waiting map[uint32]*streamHead
	size    int // of all that wait
	talk    allowance
	given   allowance
}

func newFrames(c net.Conn, headBytes int, headTimeout time.Duration, report func(status int)) *frames {
	f := &frames{Conn: c, headBytes: headBytes, headTimeout: headTimeout, report: report, closed: make(chan struct{}),
		in: make([]byte, 8<<10), waiting: map[uint32]*streamHead{}, open: map[uint32]bool{},
		talk:  allowance{most: h2Talk, rate: h2TalkRate},
		given: allowance{most: h2Abandoned, rate: h2AbandonRate}}
	f.hpack = f.decoder()
	return f
}

// Read gives the engine what it may have.
func (f *frames) Read(p []byte) (n int, err error) {
	if f.defect != nil { // the engine reads in a goroutine where nobody would catch it
		defer func() {
			if v := recover(); v != nil {
				f.over, f.out = true, nil
				f.defect(v)
				n, err = 0, caught(v)
			}
		}()
	}
	for len(f.out) == 0 {
		if f.over {
			return 0, f.drain()
		}
		f.timed()
		n, err := f.Conn.Read(f.in)
		f.out = f.space[:0]
		f.scan(f.in[:n])
		if f.space = f.out[:0]; cap(f.space) > 64<<10 {
			f.space = nil
		}
		if err != nil && !f.over {
			verdict := f.condemned()
			if verdict == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				verdict = http.StatusRequestTimeout
			}
			if verdict == 0 {
				if len(f.out) == 0 {
					return 0, err
				}
				break
			}
			f.fail(verdict)
		}
	}
	n = copy(p, f.out)
	f.out = f.out[n:]
	return n, nil
}

// timed bounds the wait for what has begun: the preface, a frame's header, a header block.
func (f *frames) timed() {
	unfinished := f.preface < len(h2Preface) || f.block != 0 || f.got > 0 && (f.got < frameHeader || f.header[3] != frameData)
	switch {
	case unfinished && f.since.IsZero():
		f.since = time.Now()
		_ = f.Conn.SetReadDeadline(f.since.Add(f.headTimeout))
	case !unfinished && !f.since.IsZero():
		f.since = time.Time{}
		_ = f.Conn.SetReadDeadline(time.Time{})
	}
	if f.condemned() != 0 {
		_ = f.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// SetReadDeadline leaves deadlines for reading to Read.
func (f *frames) SetReadDeadline(time.Time) error { return nil }

// drain reads what still comes, so that what was told to the peer is not lost in a reset, and is done soon.
func (f *frames) drain() error {
	_ = f.Conn.SetReadDeadline(time.Now().Add(h2Farewell))
	for {
		if _, err := f.Conn.Read(f.in); err != nil {
			return err
		}
	}
}

// Write passes on what the engine says.
func (f *frames) Write(p []byte) (int, error) {
	f.mu.Lock()
	f.talk.earn(h2TalkEarned + len(p)/h2Frame)
	f.mu.Unlock()
	return f.Conn.Write(p)
}

func (f *frames) Close() error {
	err := f.Conn.Close()
	f.once.Do(func() { close(f.closed) })
	return err
}

// fail ends the connection, and reports why.
func (f *frames) fail(status int) {
	if f.over {
		return
	}
	f.over = true
	f.payload, f.list = nil, nil
	f.report(status)
	if f.preface == len(h2Preface) {
		f.out = append(f.out, h2Poison[:]...)
	}
}

// condemned is the verdict of somebody else than the reader.
func (f *frames) condemned() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fatal
}

// abandoned counts an exchange that was given up. Whoever does that for sport is sent away (CVE-2023-44487; and, where
// the peer makes the engine itself reset the stream, CVE-2025-8671).
func (f *frames) abandoned() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.given.spend() && f.fatal == 0 {
		f.fatal = http.StatusTooManyRequests
		_ = f.Conn.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	}
}

// take gives the request with this number, once; nil when it has been given up.
func (f *frames) take(id uint32) *streamHead {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.waiting[id]
	if h != nil {
		f.size -= h.size
		delete(f.waiting, id)
	}
	return h
}

// talks counts a frame that carries nothing.
func (f *frames) talks() {
	f.mu.Lock()
	ok := f.talk.spend()
	f.mu.Unlock()
	if !ok {
		f.fail(http.StatusTooManyRequests)
	}
}

func (f *frames) scan(p []byte) {
	for len(p) > 0 && !f.over {
		switch {
		case f.preface < len(h2Preface):
			n := min(len(p), len(h2Preface)-f.preface)
			if string(p[:n]) != h2Preface[f.preface:f.preface+n] {
				f.fail(http.StatusBadRequest)
				return
			}
			f.preface += n
			f.out = append(f.out, p[:n]...)
			p = p[n:]
		case f.got < frameHeader:
			n := copy(f.header[f.got:], p)
			f.got += n
			p = p[n:]
			if f.got == frameHeader {
				f.begin()
			}
		default:
			n := min(len(p), f.left)
			switch f.header[3] {
			case frameHeaders, frameContinuation:
				f.payload = append(f.payload, p[:n]...)
			case frameData, frameReset, frameSettings, framePing, frameGoAway, frameWindow:
				f.out = append(f.out, p[:n]...)
			}
			f.left -= n
			p = p[n:]
		}
		if f.got == frameHeader && f.left == 0 && !f.over {
			f.end()
			f.got = 0
		}
	}
}

// stream is the one that the current frame is about.
func (f *frames) stream() uint32 { return binary.BigEndian.Uint32(f.header[5:]) & 0x7fffffff }

// begin judges a frame by its header.
func (f *frames) begin() {
	f.left = int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
	kind, flags, id := f.header[3], f.header[4], f.stream()
	bad := func(broken bool) bool {
		if broken {
			f.fail(http.StatusBadRequest)
		}
		return broken
	}
	if bad(f.left > h2Frame) || // RFC 9113 §4.2
		bad(!f.first && (kind != frameSettings || flags&1 != 0)) || // RFC 9113 §3.4
		bad((f.block != 0) != (kind == frameContinuation)) || bad(f.block != 0 && id != f.block) { // RFC 9113 §6.10
		return
	}
	f.first = true
	switch kind {
	case frameHeaders:
		if bad(id%2 == 0) { // RFC 9113 §5.1.1
			return
		}
		f.payload = f.payload[:0]
	case frameContinuation:
		if f.parts++; f.parts > h2Parts {
			f.fail(http.StatusTooManyRequests)
			return
		}
		f.payload = f.payload[:0]
	case framePush:
		f.fail(http.StatusBadRequest) // RFC 9113 §8.4: a client cannot
	case frameData:
		if flags&flagEndStream != 0 {
			delete(f.open, id)
		} else if f.left < h2SmallData {
			f.talks()
		}
	case framePriority:
		// RFC 9113 §6.3; what it says is not heeded (§5.3.2).
		if !bad(id == 0 || f.left != 5) {
			f.talks()
		}
		return
	case frameReset:
		delete(f.open, id)
		f.take(id)
		f.talks()
	default:
		f.talks()
	}
	switch kind {
	case frameData, frameReset, frameSettings, framePing, frameGoAway, frameWindow:
		if !f.over {
			f.out = append(f.out, f.header[:]...)
		}
	}
}

// end takes a frame that is here whole. Frames of unknown types are passed over (RFC 9113 §4.1).
func (f *frames) end() {
	part := f.payload
	switch f.header[3] {
	case frameHeaders:
		var ok bool
		if f.spoilt {
			f.fail(http.StatusRequestHeaderFieldsTooLarge)
			return
		}
		if part, ok = unpadded(part, f.header[4]); !ok {
			f.fail(http.StatusBadRequest)
			return
		}
		f.block, f.flags, f.parts, f.bytes = f.stream(), f.header[4], 1, 0
		f.list = &fieldList{max: f.headBytes, trailer: f.block <= f.last}
		if f.list.trailer && !f.open[f.block] { // RFC 9113 §5.1, §5.1.1
			f.fail(http.StatusBadRequest)
			return
		}
		f.hpack.SetEmitEnabled(true)
	case frameContinuation:
	default:
		return
	}
	f.fragment(part)
	if f.header[4]&flagEndHeaders != 0 && !f.over {
		f.endBlock()
	}
}

// unpadded is a HEADERS frame's part of the header block (RFC 9113 §6.2).
func unpadded(p []byte, flags byte) (part []byte, ok bool) {
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			return nil, false
		}
		pad, p = int(p[0]), p[1:]
	}
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return nil, false
		}
		p = p[5:] // not heeded: RFC 9113 §5.3.2
	}
	if pad > len(p) {
		return nil, false
	}
	return p[:len(p)-pad], true
}

// fragment decodes a part of a header block. A block that is too large is decoded on to some length, for the request's
// refusal and for those that come after it; one whose single strings are too large cannot be.
func (f *frames) fragment(part []byte) {
	if f.bytes += len(part); f.bytes > 4*f.headBytes {
		f.fail(http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	if f.spoilt {
		return
	}
	_, err := f.hpack.Write(part)
	switch {
	case errors.Is(err, hpack.ErrStringLength):
		f.spoilt = true
		f.list.refuse(http.StatusRequestHeaderFieldsTooLarge)
	case err != nil:
		f.fail(http.StatusBadRequest) // RFC 9113 §4.3
	}
}

// endBlock takes a header block that is here whole.
func (f *frames) endBlock() {
	id, list, ended := f.block, f.list, f.flags&flagEndStream != 0
	f.block, f.list = 0, nil
	if !f.spoilt && f.hpack.Close() != nil { // RFC 9113 §4.3
		f.fail(http.StatusBadRequest)
		return
	}
	if list.trailer {
		// Trailers are dropped. Those that are malformed (RFC 9113 §8.1) end the connection, and so does what cannot be read.
		if !ended || list.verdict != 0 || f.spoilt {
			f.fail(http.StatusBadRequest)
			return
		}
		delete(f.open, id)
		f.out = appendFrame(f.out, frameData, flagEndStream, id, nil)
		return
	}
	if f.last = id; !ended {
		f.open[id] = true
	}
	f.streams.Add(1)
	h := list.head(ended)
	f.mu.Lock()
	f.waiting[id] = h
	f.size += h.size
	many := len(f.waiting) > h2Waiting || f.size > h2WaitingSize || len(f.open) > h2Requests
	f.mu.Unlock()
	if many {
		f.fail(http.StatusTooManyRequests)
		return
	}
	block := neutral(nil, strconv.FormatUint(uint64(id), 10), h.Method == http.MethodHead, h.expect && h.verdict == 0)
	f.out = appendFrame(f.out, frameHeaders, flagEndHeaders|f.flags&flagEndStream, id, block)
}

func appendFrame(dst []byte, kind, flags byte, id uint32, payload []byte) []byte {
	n := len(payload)
	dst = append(dst, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	dst = binary.BigEndian.AppendUint32(dst, id)
	return append(dst, payload...)
}

// allowance is a number of things that may happen at once, which comes back with time. Its owner's lock guards it.
type allowance struct {
	most, rate float64 // rate is a second's
	used       float64
	at         time.Time
}

func (a *allowance) spend() bool {
	now := time.Now()
	if !a.at.IsZero() {
		a.used = max(0, a.used-now.Sub(a.at).Seconds()*a.rate)
	}
	a.at = now
	a.used++
	return a.used <= a.most
}

func (a *allowance) earn(n int) { a.used = max(0, a.used-float64(n)) }
