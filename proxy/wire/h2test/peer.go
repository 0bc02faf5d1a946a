// Package h2test speaks HTTP/2 frame by frame, so that tests can say what no library would: header blocks in pieces,
// names in upper case, lengths that are not so, windows that never open. Tests of proxy/wire and of proxy use it, and
// nothing else does.
package h2test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Peer is a client's end of a connection. It belongs to one goroutine.
type Peer struct {
	testing.TB
	net.Conn
	*http2.Framer
	// Stingy peers open no window but the one that each stream begins with.
	Stingy bool
	// Last is the last stream that the server takes, once it has said GOAWAY with Code.
	Last uint32
	Code http2.ErrCode
	Gone bool

	encoder *hpack.Encoder
	block   bytes.Buffer
	answers map[uint32]*Answer
}

// Answer is what came on one stream.
type Answer struct {
	Status  int // 0 when there was none
	Interim []int
	Header  http.Header
	Body    string
	Whole   bool // the server has ended the stream
	Bare    bool // it ended with the first block of fields: gRPC's Trailers-Only
	Reset   bool
	Code    http2.ErrCode // of the reset
}

// New says the preface and these settings on c.
func New(t testing.TB, c net.Conn, settings ...http2.Setting) *Peer {
	t.Helper()
	p := Bare(t, c)
	p.Must(io.WriteString(c, http2.ClientPreface))
	p.Do(p.WriteSettings(settings...))
	return p
}

// Bare says nothing yet.
func Bare(t testing.TB, c net.Conn) *Peer {
	p := &Peer{TB: t, Conn: c, Framer: http2.NewFramer(c, c), answers: map[uint32]*Answer{}}
	p.encoder = hpack.NewEncoder(&p.block)
	p.AllowIllegalWrites = true
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return p
}

// Do fails the test on err.
func (p *Peer) Do(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// Must fails the test on err.
func (p *Peer) Must(_ int, err error) { p.Helper(); p.Do(err) }

// Block is the header block of fields, which are names and values by turns.
func (p *Peer) Block(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		p.Do(p.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return bytes.Clone(p.block.Bytes())
}

// Open sends the head of a request; end says that it has no body.
func (p *Peer) Open(id uint32, end bool, fields ...string) {
	p.Helper()
	p.Do(p.OpenBlock(id, end, p.Block(fields...)))
}

// OpenBlock sends a header block in as many frames as it needs.
func (p *Peer) OpenBlock(id uint32, end bool, block []byte) error {
	const most = 16 << 10
	first := block[:min(most, len(block))]
	rest := block[len(first):]
	if err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0}); err != nil {
		return err
	}
	for len(rest) > 0 {
		part := rest[:min(most, len(rest))]
		rest = rest[len(part):]
		if err := p.WriteContinuation(id, len(rest) == 0, part); err != nil {
			return err
		}
	}
	return nil
}

// Next takes the next frame, answers it where that is due, and returns it; nil when the connection has ended.
func (p *Peer) Next() http2.Frame {
	f, err := p.ReadFrame()
	if err != nil {
		return nil
	}
	a := p.of(f.Header().StreamID)
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			_ = p.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			_ = p.WritePing(true, f.Data)
		}
	case *http2.MetaHeadersFrame:
		status, _ := strconv.Atoi(f.PseudoValue("status"))
		if status >= 100 && status < 200 {
			a.Interim = append(a.Interim, status)
			break
		}
		a.Status, a.Header = status, http.Header{}
		for _, h := range f.RegularFields() {
			a.Header.Add(h.Name, h.Value)
		}
		a.Whole = f.StreamEnded()
		a.Bare = a.Whole
	case *http2.DataFrame:
		a.Body += string(f.Data())
		a.Whole = f.StreamEnded()
		if n := f.Length; n > 0 && !p.Stingy {
			_ = p.WriteWindowUpdate(0, n)
			if !a.Whole {
				_ = p.WriteWindowUpdate(f.StreamID, n)
			}
		}
	case *http2.RSTStreamFrame:
		a.Reset, a.Code = true, f.ErrCode
	case *http2.GoAwayFrame:
		p.Gone, p.Last, p.Code = true, f.LastStreamID, f.ErrCode
	}
	return f
}

func (p *Peer) of(id uint32) *Answer {
	a := p.answers[id]
	if a == nil {
		a = &Answer{}
		p.answers[id] = a
	}
	return a
}

// Answer reads until the stream has ended, or the connection.
func (p *Peer) Answer(id uint32) *Answer {
	for a := p.of(id); ; {
		if a.Whole || a.Reset || p.Next() == nil {
			return a
		}
	}
}

// So reads until the stream has brought at least n bytes.
func (p *Peer) So(id uint32, n int) *Answer {
	for a := p.of(id); ; {
		if len(a.Body) >= n || a.Whole || a.Reset || p.Next() == nil {
			return a
		}
	}
}

// End reads until the connection has ended.
func (p *Peer) End() {
	for p.Next() != nil {
	}
}
