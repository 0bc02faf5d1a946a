package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// said is a connection on which a peer has said all that it will.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(p []byte) (int, error)    { return s.Reader.Read(p) }
func (said) SetReadDeadline(time.Time) error { return nil }

// Whatever a peer says, and in whatever pieces it comes: the engine gets nothing of a header block but a number, and a
// request that goes on is one that golang.org/x/net's reader takes too.
func FuzzH2Frames(f *testing.F) {
	var seed bytes.Buffer
	seed.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&seed, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/a"},
		{Name: ":authority", Value: "a"}, {Name: "x", Value: "y"}} {
		_ = enc.WriteField(h)
	}
	_ = fr.WriteSettings()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()[:5], PadLength: 3})
	_ = fr.WriteContinuation(1, true, block.Bytes()[5:])
	_ = fr.WriteData(1, true, []byte("abc"))
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	_ = fr.WriteRSTStream(3, 8)
	f.Add(seed.Bytes())
	f.Add([]byte(http2.ClientPreface))
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(r io.Reader) (out []byte, g *frames, status int) {
			g = newFrames(said{Reader: r}, 64<<10, time.Second, func(s int) { status = s })
			out, err := io.ReadAll(g)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			return out, g, status
		}
		out, g, status := read(bytes.NewReader(in))
		again, _, same := read(iotest.OneByteReader(bytes.NewReader(in)))
		if _, ok := bytes.CutPrefix(in, []byte(http2.ClientPreface)); !ok {
			return // what goes on of it is no preface
		}
		if !bytes.Equal(out, again) || status != same {
			t.Fatalf("whole: %q %d; in pieces: %q %d", out, status, again, same)
		}
		rest, ok := bytes.CutPrefix(out, []byte(http2.ClientPreface))
		if !ok {
			return
		}
		for fr := http2.NewFramer(io.Discard, bytes.NewReader(rest)); ; {
			frame, err := fr.ReadFrame()
			if err != nil {
				break
			}
			if h, ok := frame.(*http2.HeadersFrame); ok && (!h.HeadersEnded() || len(h.HeaderBlockFragment()) > 64) {
				t.Fatalf("the engine got %v", h)
			}
		}
		good := map[uint32]bool{}
		for id, h := range g.waiting {
			if good[id] = h.verdict == 0; !good[id] {
				continue
			}
			for _, field := range h.Header {
				if !isToken(field.Name) || strings.ContainsAny(field.Value, "\r\n\x00") || strings.ToLower(field.Name) != field.Name {
					t.Fatalf("field %q", field)
				}
			}
		}
		fr := http2.NewFramer(io.Discard, bytes.NewReader(in[len(http2.ClientPreface):]))
		fr.ReadMetaHeaders = hpack.NewDecoder(h2Table, nil)
		fr.MaxHeaderListSize = 1 << 20
		for range 1000 {
			frame, err := fr.ReadFrame()
			var stream http2.StreamError
			if errors.As(err, &stream) && good[stream.StreamID] && stream.Code == http2.ErrCodeProtocol {
				if _, isHead := frame.(*http2.MetaHeadersFrame); isHead || frame == nil && strings.Contains(errString(fr.ErrorDetail()), "header") {
					t.Fatalf("stream %d goes on, and its head is not acceptable: %v", stream.StreamID, fr.ErrorDetail())
				}
			}
			if err != nil && !errors.As(err, &stream) {
				return
			}
		}
	})
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
