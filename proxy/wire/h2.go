package wire

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// HTTP/2 is what clients other than wards get by ALPN. net/http multiplexes: streams, flow control, settings, the
// writing of frames. It decides nothing else: frames reads along, and judges every header block before the engine sees
// it (h2_frames.go, h2_head.go). What the engine gets in a header block's place is a bare number, by which the handler
// finds the request as it stood on the wire. So no reading of a path or of a field is ever the engine's, and none of its
// own answers to malformed requests (400, 431, or a reset without a word) can go out without a record.
//
// Threats met here: requests that mean one thing as HTTP/2 and another as HTTP/1.1 (RFC 9113 §10.3), header blocks
// without end (CVE-2024-27316) or that decompress to far more than was sent, streams that are opened to be given up
// (CVE-2023-44487, CVE-2025-8671), floods of frames that cost the sender nothing (CVE-2019-9512 to 9518), and peers that
// take no answer. What the engine bounds by itself: streams open at a time, handlers that wait, bytes received and not
// yet read, control frames that wait to be written.

// What a peer may have of one HTTP/2 connection.
const (
	h2Streams   = 100      // open at a time
	h2Requests  = 10_000   // in all; the answer to the last one tells the peer to open another connection
	h2Frame     = 16 << 10 // bytes of a frame: the least that can be allowed (RFC 9113 §4.2)
	h2Window    = 256 << 10
	h2Unread    = 1 << 20          // bytes of all bodies that are received and not read
	h2Table     = 4 << 10          // of each side's HPACK table
	h2Stall     = 30 * time.Second // how long a peer may take for a piece of an answer, and a connection for any byte
	h2Check     = time.Minute      // of silence, after which the engine asks whether the peer is still there
	h2ReadGrace = time.Second      // as readGrace and writeGrace
	h2EndGrace  = 5 * time.Second
	h2BodyRate  = 1 << 10 // bytes a second that a request's body brings at least, after h2Stall
)

// serveH2 serves an admitted connection on which ALPN has chosen h2, and returns when it has ended. When ctx ends, the
// peer is told that the connection goes no further (GOAWAY), and what runs may end.
func (s *Server) serveH2(ctx context.Context, a *admitted) {
	f := newFrames(a.Conn, s.HeadBytes, s.HeadTimeout, func(status int) {
		if r := s.Refuse(a.value, a.RemoteAddr().String(), status); r.Body != nil {
			_ = r.Body.Close()
		}
	})
	f.defect = s.defect
	var only http.Protocols
	// For the engine the connection is in plain text: frames stands between it and TLS.
	only.SetUnencryptedHTTP2(true)
	engine := &http.Server{
		Handler:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.stream(f, a, w, r) }),
		Protocols:      &only,
		IdleTimeout:    s.IdleTimeout,
		MaxHeaderBytes: s.HeadBytes,
		ErrorLog:       log.New(io.Discard, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: h2Streams, MaxReadFrameSize: h2Frame,
			MaxReceiveBufferPerConnection: h2Unread, MaxReceiveBufferPerStream: h2Window,
			MaxDecoderHeaderTableSize: h2Table, MaxEncoderHeaderTableSize: h2Table,
			WriteByteTimeout: h2Stall, SendPingTimeout: h2Check,
		},
	}
	stop := context.AfterFunc(ctx, func() { f.leave(engine) })
	defer stop()
	_ = engine.Serve(&single{conn: f}) // it ends at once: there is no other connection
	<-f.closed
}

// single is a listener of one connection.
type single struct{ conn net.Conn }

func (l *single) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l *single) Close() error   { return nil }
func (l *single) Addr() net.Addr { return &net.TCPAddr{} }

// leave tells the peer to go, and lets what runs end.
func (f *frames) leave(engine *http.Server) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	_ = engine.Shutdown(now) // which sends GOAWAY, and need not be waited for
	// A peer that has not said anything yet is not known to the engine.
	time.AfterFunc(farewell, func() {
		if f.streams.Load() == 0 {
			_ = f.Close()
		}
	})
}

// stream is one exchange.
func (s *Server) stream(f *frames, a *admitted, w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.RequestURI[1:], 10, 31)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	head := f.take(uint32(id))
	if head == nil { // it has been given up
		f.abandoned()
		panic(http.ErrAbortHandler)
	}
	rc := http.NewResponseController(w)
	body := &streamBody{from: r.Body, rc: rc, length: head.Length}
	request := head.Request
	request.Body, request.H2 = body, true
	var gone bool
	x := NewExchange(r.Context(), request, a.value, a.RemoteAddr().String(), func(resp *Response) (int64, error) {
		if err := r.Context().Err(); err != nil {
			gone = true
			return 0, err
		}
		resp.Close = resp.Close || s.draining() || f.streams.Load() >= h2Requests
		return answerStream(w, rc, request.Method, resp, body.end())
	})
	x.until = body.until
	if head.verdict == 0 && head.Length == 0 && !head.ended && !body.empty(s.HeadTimeout) {
		head.verdict = http.StatusBadRequest // RFC 9113 §8.1.1: the body is not as long as Content-Length says
	}
	if head.verdict != 0 {
		_, _ = x.Commit(s.Refuse(a.value, x.Remote, head.verdict))
	} else {
		s.handle(x)
	}
	if gone || x.abort && r.Context().Err() != nil {
		f.abandoned() // the work was for nothing
	}
	if x.abort || !x.done {
		panic(http.ErrAbortHandler) // which resets the stream
	}
}

// errBody says that a body is not as long as was announced.
var errBody = errors.New("wire: the body is not as long as Content-Length says")

// streamBody is a request's body. It ends with the exchange, and brings a least number of bytes a second.
type streamBody struct {
	from   io.Reader
	rc     *http.ResponseController
	length int64 // announced; -1 nothing

	mu    sync.Mutex
	last  time.Time // the exchange's end; zero when it has none
	begun time.Time // when it was first read
	bound time.Time // what the engine was last told
	n     int64
}

func (b *streamBody) until(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = t
	b.limit(t.Add(h2ReadGrace))
}

func (b *streamBody) end() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// limit tells the engine when reading is to fail. The caller holds mu.
func (b *streamBody) limit(t time.Time) {
	if b.bound.IsZero() || t.Before(b.bound) || t.Sub(b.bound) > time.Second {
		b.bound = t
		_ = b.rc.SetReadDeadline(t)
	}
}

// paced bounds the next read. Only the time since the first one counts: before that, nobody wanted the body.
func (b *streamBody) paced() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun.IsZero() {
		b.begun = time.Now()
	}
	t := b.begun.Add(h2Stall + time.Duration(b.n)*time.Second/h2BodyRate)
	if end := b.last.Add(h2ReadGrace); !b.last.IsZero() && end.Before(t) {
		t = end
	}
	b.limit(t)
}

func (b *streamBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b.paced()
	n, err := b.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	b.n += int64(n)
	// RFC 9113 §8.1.1: the lengths of all DATA frames are Content-Length together.
	if b.length >= 0 && (b.n > b.length || err != nil && b.n < b.length) {
		return 0, errBody
	}
	return n, err
}

// empty waits for the end of a body that is announced to have no bytes.
func (b *streamBody) empty(within time.Duration) bool {
	_ = b.rc.SetReadDeadline(time.Now().Add(within))
	n, err := b.from.Read(make([]byte, 1))
	return n == 0 && errors.Is(err, io.EOF)
}

// answerStream writes resp; end is the exchange's.
func answerStream(w http.ResponseWriter, rc *http.ResponseController, method string, resp *Response, end time.Time) (int64, error) {
	out := w.Header()
	for _, f := range resp.Header {
		out.Add(f.Name, f.Value)
	}
	// The engine would guess a type, and count the bytes of a body that is not there.
	for _, name := range [...]string{"Content-Type", "Content-Length"} {
		if _, ok := out[name]; !ok {
			out[name] = nil
		}
	}
	if resp.Length >= 0 && resp.Status != http.StatusNoContent && resp.Status != http.StatusNotModified {
		out.Set("Content-Length", strconv.FormatInt(resp.Length, 10))
	}
	if resp.Close {
		out.Set("Connection", "close") // for the engine, which makes GOAWAY of it
	}
	p := &patience{end: end, rc: rc}
	defer p.over()
	w.WriteHeader(resp.Status)
	if resp.Body == nil || method == http.MethodHead {
		return 0, nil
	}
	if resp.Length < 0 { // the head tells that the answer has begun
		if err := p.with(rc.Flush); err != nil {
			return 0, err
		}
	}
	return pour(w, p, resp.Body)
}

// pour copies src to the stream, and flushes whenever src has given less than a full buffer: events go out as they come.
func pour(w io.Writer, p *patience, src io.Reader) (int64, error) {
	room := pieces.Get().(*piece)
	defer pieces.Put(room)
	buf := room[:32<<10]
	var n int64
	for {
		m, err := src.Read(buf)
		if m > 0 {
			if werr := p.with(func() error { _, werr := w.Write(buf[:m]); return werr }); werr != nil {
				return n, werr
			}
			n += int64(m)
			if m < len(buf) && err == nil {
				if ferr := p.with(p.rc.Flush); ferr != nil {
					return n, ferr
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// patience is with a peer that opens no window for its answer. The wait for what is to be written is not counted.
type patience struct {
	end   time.Time
	rc    *http.ResponseController
	timer *time.Timer
}

// until is when a write that begins now must have ended.
func (p *patience) until() time.Time {
	now := time.Now()
	t := now.Add(h2Stall)
	if last := p.end.Add(h2EndGrace); !p.end.IsZero() && last.Before(t) {
		t = last
	}
	if soon := now.Add(h2ReadGrace); t.Before(soon) {
		return soon
	}
	return t
}

func (p *patience) with(write func() error) error {
	wait := time.Until(p.until())
	if p.timer == nil {
		// A deadline that has passed resets the stream.
		p.timer = time.AfterFunc(wait, func() { _ = p.rc.SetWriteDeadline(time.Unix(1, 0)) })
	} else {
		p.timer.Reset(wait)
	}
	defer p.timer.Stop()
	return write()
}

// over leaves what the engine has yet to write to the engine's own patience.
func (p *patience) over() { _ = p.rc.SetWriteDeadline(p.until()) }
