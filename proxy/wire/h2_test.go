package wire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

	"github.com/wardmesh/ward/proxy/wire"
	"github.com/wardmesh/ward/proxy/wire/h2test"
)

// h2Server is a server that speaks HTTP/2 and remembers what it was asked and what it refused.
type h2Server struct {
	*wire.Server
	address string

	mu       sync.Mutex
	got      []wire.Request
	bodies   []string
	errs     []error
	refused  []int
	reported chan int
	closed   chan struct{}
}

// secure is a configuration with a certificate that is good whatever the clock says.
func secure(t *testing.T, protocols ...string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// newH2 makes a server that answers with the body it got, unless handle says otherwise.
func newH2(t *testing.T, handle func(*wire.Exchange)) *h2Server {
	t.Helper()
	s := &h2Server{reported: make(chan int, 1000), closed: make(chan struct{}, 100)}
	s.Server = &wire.Server{TLS: secure(t, "h2", "http/1.1")}
	s.Refuse = func(conn any, remote string, status int) *wire.Response {
		if conn != "peer" || remote == "" {
			t.Errorf("refused for %v at %q", conn, remote)
		}
		s.mu.Lock()
		s.refused = append(s.refused, status)
		s.mu.Unlock()
		s.reported <- status
		return &wire.Response{Status: status, Header: wire.Header{{Name: "Refused-By", Value: "ward"}}, Body: text("refused"), Length: 7, Close: true}
	}
	s.Closed = func(any) { s.closed <- struct{}{} }
	s.Handle = func(x *wire.Exchange) {
		if handle != nil {
			handle(x)
			return
		}
		body, err := io.ReadAll(x.Request.Body)
		s.mu.Lock()
		s.got, s.bodies, s.errs = append(s.got, x.Request), append(s.bodies, string(body)), append(s.errs, err)
		s.mu.Unlock()
		status := 200
		if err != nil {
			status = 400
		}
		_, _ = x.Commit(&wire.Response{Status: status, Body: text(string(body)), Length: int64(len(body))})
	}
	s.address = serve(t, s.Server)
	return s
}

func (s *h2Server) requests() []wire.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

// connect is TLS with h2 on top, nothing said.
func (s *h2Server) connect(t *testing.T) net.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	if c.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatal("no h2")
	}
	return c
}

func (s *h2Server) peer(t *testing.T, settings ...http2.Setting) *h2test.Peer {
	t.Helper()
	return h2test.New(t, s.connect(t), settings...)
}

// get is the head of a good request, with changes.
func get(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "https", ":path", "/a", ":authority", "fhir.test"}, more...)
}

func post(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "https", ":path", "/a", ":authority", "fhir.test"}, more...)
}

func TestH2RequestReachesTheHandlerRaw(t *testing.T) {
	s := newH2(t, nil)
	p := s.peer(t)
	const target = `/Patient/%2e%2e//x%zz\;?a=%31;b#c` + "\xe9"
	p.Open(1, false, ":method", "POST", ":path", target, ":authority", "Fhir.Example:80", ":scheme", "https",
		"ward_caller", "a", "x-two", "1", "cookie", "a=b", "x-one", "1", "x-two", "2", "cookie", "c=d", "host", "fhir.example:80", "te", "trailers", "content-length", "3")
	p.Do(p.WriteData(1, true, []byte("abc")))
	a := p.Answer(1)
	if a.Status != 200 || a.Body != "abc" || !a.Whole || a.Header.Get("Content-Type") != "" || a.Header.Get("Content-Length") != "3" {
		t.Fatalf("answer: %+v", a)
	}
	got := s.requests()[0]
	got.Body = nil
	want := wire.Request{Method: "POST", Target: target, Host: "Fhir.Example:80", Length: 3, H2: true, Header: wire.Header{
		{Name: "ward_caller", Value: "a"}, {Name: "x-two", Value: "1"}, {Name: "x-one", Value: "1"}, {Name: "x-two", Value: "2"},
		{Name: "te", Value: "trailers"}, {Name: "cookie", Value: "a=b; c=d"}}}
	// te is a field of one hop; that it is dropped is the journey's.
	if d := cmp.Diff(want, got); d != "" && !strings.Contains(d, `"te"`) {
		t.Errorf("request (-want +got): %s", d)
	}
}

// RFC 9113: what a head must not be. Each is answered by Ward's refusal, and reaches no handler.
func TestH2MalformedHeads(t *testing.T) {
	long := strings.Repeat("x", 60<<10)
	many := func(n int) (f []string) {
		for i := range n {
			f = append(f, "x-"+strconv.Itoa(i), "x")
		}
		return f
	}
	for name, c := range map[string]struct {
		fields []string
		status int
	}{
		"§8.2 upper case in a name":                 {get("X-Upper", "a"), 400},
		"§8.2.1 a name with a space":                {get("x y", "a"), 400},
		"§8.2.1 a name with a colon":                {get("x:y", "a"), 400},
		"§8.2.1 an empty name":                      {get("", "a"), 400},
		"§8.2.1 a name above 0x7e":                  {get("x\xe9", "a"), 400},
		"§8.2.1 CR LF in a value":                   {get("x", "a\r\nWard-Caller: b"), 400},
		"§8.2.1 LF in a value":                      {get("x", "a\nb"), 400},
		"§8.2.1 NUL in a value":                     {get("x", "a\x00b"), 400},
		"§8.2.1 a value that begins with a space":   {get("x", " a"), 400},
		"§8.2.1 a value that ends with a tab":       {get("x", "a\t"), 400},
		"RFC 9110 §5.5 DEL in a value":              {get("x", "a\x7f"), 400},
		"§8.2.2 connection":                         {get("connection", "close"), 400},
		"§8.2.2 connection names authorization":     {get("connection", "authorization"), 400},
		"§8.2.2 proxy-connection":                   {get("proxy-connection", "close"), 400},
		"§8.2.2 keep-alive":                         {get("keep-alive", "timeout=5"), 400},
		"§8.2.2 transfer-encoding":                  {post("transfer-encoding", "chunked"), 400},
		"§8.2.2 upgrade":                            {get("upgrade", "websocket"), 400},
		"§8.2.2 te":                                 {get("te", "gzip"), 400},
		"§8.2.2 te with more than trailers":         {get("te", "trailers, deflate"), 400},
		"§8.3 an unknown pseudo-header field":       {get(":forged", "a"), 400},
		"§8.3 a response's pseudo-header field":     {append([]string{":status", "200"}, get()...), 400},
		"§8.3 a pseudo-header field after a field":  {[]string{":method", "GET", ":scheme", "https", "x", "y", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.3 :path twice":                          {append([]string{":path", "/b"}, get()...), 400},
		"§8.3 :authority twice":                     {append([]string{":authority", "other.test"}, get()...), 400},
		"§8.3 :method twice":                        {append([]string{":method", "GET"}, get()...), 400},
		"§8.3.1 no :path":                           {[]string{":method", "GET", ":scheme", "https", ":authority", "fhir.test"}, 400},
		"§8.3.1 :path empty":                        {[]string{":method", "GET", ":scheme", "https", ":authority", "fhir.test", ":path", ""}, 400},
		"§8.3.1 no :method":                         {[]string{":scheme", "https", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.3.1 no :scheme":                         {[]string{":method", "GET", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.3.1 another scheme":                     {[]string{":method", "GET", ":scheme", "ftp", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.3.1 neither :authority nor host":        {[]string{":method", "GET", ":scheme", "https", ":path", "/a"}, 400},
		"§8.3.1 host is not :authority":             {get("host", "other.test"), 400},
		"§8.3.1 host twice":                         {get("host", "fhir.test", "host", "fhir.test"), 400},
		"a space in :path":                          {[]string{":method", "GET", ":scheme", "https", ":path", "/a HTTP/1.1", ":authority", "fhir.test"}, 400},
		"CR LF in :path":                            {[]string{":method", "GET", ":scheme", "https", ":path", "/a\r\nX: y", ":authority", "fhir.test"}, 400},
		"a method that is no token":                 {[]string{":method", "GET /", ":scheme", "https", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.5 CONNECT with :path":                   {[]string{":method", "CONNECT", ":scheme", "https", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.5 CONNECT without :authority":           {[]string{":method", "CONNECT", "host", "fhir.test"}, 400},
		"RFC 8441 §4 extended CONNECT":              {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/a", ":authority", "fhir.test"}, 400},
		"§8.1.1 content-length without a body":      {post("content-length", "5"), 400},
		"RFC 9110 §8.6 content-length twice":        {post("content-length", "0", "content-length", "0"), 400},
		"RFC 9110 §8.6 content-length is a list":    {post("content-length", "0, 0"), 400},
		"RFC 9110 §8.6 content-length with a sign":  {post("content-length", "+0"), 400},
		"RFC 9110 §8.6 content-length empty":        {post("content-length", ""), 400},
		"RFC 9110 §8.6 content-length of 19 digits": {post("content-length", "0000000000000000000"), 400},
		"RFC 9110 §10.1.1 another expectation":      {post("expect", "a miracle"), 417},
		"20 101 fields":                             {get(many(101)...), 431},
		"20 500 fields":                             {get(many(500)...), 431},
		"20 a head of more than 64 KiB":             {get("x-a", long, "x-b", long[:5<<10]), 431},
		"20 a field of more than 64 KiB":            {get("x-a", long+long), 431},
		"20 a pseudo-header field above 64 KiB":     {[]string{":method", "GET", ":scheme", "https", ":path", "/" + long + long, ":authority", "fhir.test"}, 431},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newH2(t, func(*wire.Exchange) { t.Error("handled") })
			p := s.peer(t)
			p.Open(1, true, c.fields...)
			a := p.Answer(1)
			if a.Status != c.status || a.Header.Get("Refused-By") != "ward" || a.Body != "refused" {
				t.Errorf("answer: %+v", a)
			}
			p.End()
			if !p.Gone || p.Code != http2.ErrCodeNo || p.Last != 1 {
				t.Errorf("the connection goes on: %v %v %d", p.Gone, p.Code, p.Last)
			}
			if d := cmp.Diff([]int{c.status}, s.refused); d != "" {
				t.Errorf("refused (-want +got): %s", d)
			}
		})
	}
}

// What is within the limits passes.
func TestH2HeadsThatAreGood(t *testing.T) {
	var fields []string
	for i := range 100 {
		fields = append(fields, "x-"+strconv.Itoa(i), "x")
	}
	for name, c := range map[string][]string{
		"20 100 fields":                 get(fields...),
		"20 a field of 60 KiB":          get("x", strings.Repeat("x", 60<<10)),
		"§8.3.1 host alone":             {":method", "GET", ":scheme", "https", ":path", "/a", "host", "fhir.test"},
		"§8.3.1 host and :authority":    get("host", "FHIR.test"),
		"§8.3.1 http":                   {":method", "GET", ":scheme", "http", ":path", "/a", ":authority", "fhir.test"},
		"§8.3.1 the asterisk":           {":method", "OPTIONS", ":scheme", "https", ":path", "*", ":authority", "fhir.test"},
		"§8.2.2 te: trailers":           get("te", "trailers"),
		"§8.5 CONNECT, which is judged": {":method", "CONNECT", ":authority", "fhir.test"},
		"content-length: 0":             post("content-length", "0"),
		"an empty value":                get("x", ""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newH2(t, nil)
			p := s.peer(t)
			p.Open(1, true, c...)
			if a := p.Answer(1); a.Status != 200 || s.requests()[0].Host != "fhir.test" || s.requests()[0].Length != 0 {
				t.Errorf("answer: %+v, request: %+v", a, s.requests())
			}
		})
	}
}

// RFC 9113 §8.1.1: DATA and Content-Length.
func TestH2BodyLengths(t *testing.T) {
	for name, c := range map[string]struct {
		length string
		data   []string
		want   int
	}{
		"none announced":          {"", []string{"ab", "c"}, 200},
		"as announced":            {"3", []string{"ab", "c"}, 200},
		"and an empty frame":      {"3", []string{"abc", ""}, 200},
		"none, and none came":     {"0", []string{""}, 200},
		"shorter":                 {"5", []string{"abc"}, 400},
		"nothing":                 {"5", []string{""}, 400},
		"longer":                  {"3", []string{"abc", "d"}, 400},
		"longer by a frame":       {"3", []string{"abcd"}, 400},
		"none announced, but one": {"0", []string{"x"}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newH2(t, nil)
			p := s.peer(t)
			fields := post()
			if c.length != "" {
				fields = post("content-length", c.length)
			}
			p.Open(1, false, fields...)
			for i, d := range c.data {
				p.Do(p.WriteData(1, i == len(c.data)-1, []byte(d)))
			}
			a := p.Answer(1)
			if a.Status != c.want {
				t.Errorf("answer: %+v", a)
			}
			if c.want == 200 && a.Body != strings.Join(c.data, "") {
				t.Errorf("body %q", a.Body)
			}
		})
	}
}

// 5: trailers are dropped; those that are malformed end the connection.
func TestH2Trailers(t *testing.T) {
	run := func(end bool, fields ...string) (*h2Server, *h2test.Peer) {
		s := newH2(t, nil)
		p := s.peer(t)
		p.Open(1, false, post("trailer", "ward-caller")...)
		p.Do(p.WriteData(1, false, []byte("abc")))
		p.Open(1, end, fields...)
		return s, p
	}
	s, p := run(true, "ward-caller", "forged", "x-forwarded-for", "forged")
	if a := p.Answer(1); a.Status != 200 || a.Body != "abc" || s.requests()[0].Header.Has("ward-caller") {
		t.Errorf("answer: %+v %+v", a, s.requests())
	}
	// The table that both sides keep is still the same.
	p.Open(3, true, get("ward-caller", "forged")...)
	if a := p.Answer(3); a.Status != 200 || s.requests()[1].Header.Get("ward-caller") != "forged" {
		t.Errorf("answer: %+v", a)
	}
	for name, c := range map[string]struct {
		end    bool
		fields []string
	}{
		"§8.1 a pseudo-header field":   {true, []string{":path", "/b"}},
		"§8.1 no end":                  {false, []string{"x", "y"}},
		"§8.2 upper case":              {true, []string{"Ward-Caller", "x"}},
		"§8.2.1 CR LF":                 {true, []string{"x", "a\r\nb"}},
		"§10.5.1 more than is bounded": {true, []string{"x", strings.Repeat("x", 70<<10)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, p := run(c.end, c.fields...)
			p.End()
			if !p.Gone || p.Code != http2.ErrCodeProtocol {
				t.Errorf("%v %v", p.Gone, p.Code)
			}
			if got := <-s.reported; got != 400 {
				t.Errorf("reported %d", got)
			}
		})
	}
}

// RFC 9113: frames that are none end the connection, and that is recorded once.
func TestH2ConnectionErrors(t *testing.T) {
	raw := func(kind http2.FrameType, flags http2.Flags, id uint32, payload string) func(*h2test.Peer) error {
		return func(p *h2test.Peer) error { return p.WriteRawFrame(kind, flags, id, []byte(payload)) }
	}
	for name, c := range map[string]struct {
		say    func(*h2test.Peer) error
		report int
	}{
		"§4.2 a frame above 16 KiB":         {raw(http2.FrameData, 0, 1, strings.Repeat("x", 16<<10+1)), 400},
		"§4.3 no HPACK":                     {raw(http2.FrameHeaders, 4, 1, "\xff\xff\xff\xff\xff\xff"), 400},
		"§4.3 a block that ends in a field": {raw(http2.FrameHeaders, 4, 1, "\x40\x05ab"), 400},
		"§4.3 an index of nothing":          {raw(http2.FrameHeaders, 4, 1, "\xff\x20"), 400},
		"§5.1.1 an even stream":             {raw(http2.FrameHeaders, 4, 2, "\x82"), 400},
		"§5.1.1 stream 0":                   {raw(http2.FrameHeaders, 4, 0, "\x82"), 400},
		"§6.2 padding beyond the frame":     {raw(http2.FrameHeaders, 4|8, 1, "\x09\x82"), 400},
		"§6.2 padded, but empty":            {raw(http2.FrameHeaders, 4|8, 1, ""), 400},
		"§6.2 a priority that is cut off":   {raw(http2.FrameHeaders, 4|0x20, 1, "\x00\x00"), 400},
		"§6.3 PRIORITY of another length":   {raw(http2.FramePriority, 0, 1, "\x00"), 400},
		"§6.3 PRIORITY on stream 0":         {raw(http2.FramePriority, 0, 0, "\x00\x00\x00\x00\x00"), 400},
		"§6.10 CONTINUATION of nothing":     {raw(http2.FrameContinuation, 4, 1, "\x82"), 400},
		"§8.4 PUSH_PROMISE":                 {raw(http2.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82"), 400},
		"§6.10 another frame within a header block": {func(p *h2test.Peer) error {
			p.Do(raw(http2.FrameHeaders, 0, 1, "\x82")(p))
			return p.WritePing(false, [8]byte{})
		}, 400},
		"§6.10 another stream's CONTINUATION": {func(p *h2test.Peer) error {
			p.Do(raw(http2.FrameHeaders, 0, 1, "\x82")(p))
			return p.WriteContinuation(3, true, []byte("\x87"))
		}, 400},
		"§5.1.1 a lower stream":                     {func(p *h2test.Peer) error { p.Open(5, true, get()...); p.Open(3, true, get()...); return nil }, 400},
		"§5.1 a request on a stream that has ended": {func(p *h2test.Peer) error { p.Open(1, true, get()...); p.Open(1, true, get()...); return nil }, 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newH2(t, nil)
			p := s.peer(t)
			_ = c.say(p)
			p.End()
			if !p.Gone || p.Code != http2.ErrCodeProtocol {
				t.Errorf("GOAWAY %v %v", p.Gone, p.Code)
			}
			<-s.closed
			if d := cmp.Diff([]int{c.report}, s.refused); d != "" {
				t.Errorf("refused (-want +got): %s", d)
			}
		})
	}
	for name, first := range map[string]string{
		"§3.4 HTTP/1.1":              "GET / HTTP/1.1\r\nHost: fhir.test\r\n\r\n",
		"§3.4 another preface":       "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
		"§3.4 no SETTINGS":           http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
		"§3.4 an acknowledgement":    http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
		"§3.4 a request comes first": http2.ClientPreface + "\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newH2(t, func(*wire.Exchange) { t.Error("handled") })
			p := h2test.Bare(t, s.connect(t))
			p.Must(io.WriteString(p.Conn, first))
			p.End()
			<-s.closed
			if d := cmp.Diff([]int{400}, s.refused); d != "" {
				t.Errorf("refused (-want +got): %s", d)
			}
		})
	}
}

// Whatever frames a request comes in, it is the same request.
func TestH2FramesInPieces(t *testing.T) {
	s := newH2(t, nil)
	c := s.connect(t)
	p := h2test.Bare(t, slowly{c})
	p.Must(io.WriteString(slowly{c}, http2.ClientPreface))
	p.Do(p.WriteSettings())
	block := p.Block(post("x", strings.Repeat("y", 100))...)
	p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:7], PadLength: 9, Priority: http2.PriorityParam{StreamDep: 1, Weight: 3}}))
	for ; len(block) > 17; block = block[10:] {
		p.Do(p.WriteContinuation(1, false, block[7:17]))
	}
	p.Do(p.WriteContinuation(1, true, block[7:]))
	p.Do(p.WriteRawFrame(0xbe, 7, 1, []byte("unknown")))
	p.Do(p.WritePriority(3, http2.PriorityParam{StreamDep: 3}))
	p.Do(p.WriteDataPadded(1, false, []byte("a"), make([]byte, 30)))
	p.Do(p.WriteDataPadded(1, true, []byte("bc"), make([]byte, 255)))
	if a := p.Answer(1); a.Status != 200 || a.Body != "abc" {
		t.Errorf("answer: %+v", a)
	}
	if r := s.requests()[0]; r.Header.Get("x") != strings.Repeat("y", 100) || r.Length != -1 {
		t.Errorf("request: %+v", r)
	}
}

// slowly writes byte by byte.
type slowly struct{ net.Conn }

func (s slowly) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestH2ExpectContinue(t *testing.T) {
	s := newH2(t, nil)
	p := s.peer(t)
	p.Open(1, false, post("expect", "100-Continue")...)
	for len(p.So(1, 0).Interim) == 0 && p.Next() != nil { //nolint:revive
	}
	p.Do(p.WriteData(1, true, []byte("abc")))
	if a := p.Answer(1); a.Status != 200 || a.Body != "abc" || len(a.Interim) != 1 {
		t.Errorf("answer: %+v", a)
	}
}

// An abort, or a defect, resets the stream and no other.
func TestH2AbortAndPanicResetTheStream(t *testing.T) {
	defects := make(chan []byte, 1)
	s := newH2(t, func(x *wire.Exchange) {
		switch x.Request.Target {
		case "/panic":
			panic("secret")
		case "/nothing":
		case "/abort":
			x.Abort()
		case "/half":
			if _, err := x.Commit(&wire.Response{Status: 200, Body: io.NopCloser(io.MultiReader(text("half"), &failing{})), Length: -1}); err == nil {
				t.Error("Commit reported no error")
			}
		default:
			_, _ = x.Commit(&wire.Response{Status: 200, Length: 0})
		}
	})
	s.Defect = func(stack []byte) { defects <- stack }
	p := s.peer(t)
	for i, path := range []string{"/panic", "/nothing", "/abort", "/half"} {
		id := uint32(2*i + 1) //nolint:gosec
		p.Open(id, true, ":method", "GET", ":scheme", "https", ":path", path, ":authority", "a")
		if a := p.Answer(id); !a.Reset || a.Whole {
			t.Errorf("%s: %+v", path, a)
		}
	}
	if d := <-defects; strings.Contains(string(d), "secret") {
		t.Error("the panic's value was reported")
	}
	p.Open(99, true, get()...)
	if a := p.Answer(99); a.Status != 200 {
		t.Errorf("another stream: %+v", a)
	}
}

// A stream that the peer gives up ends its exchange.
func TestH2ResetEndsTheExchange(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	s := newH2(t, func(x *wire.Exchange) {
		close(begun)
		<-x.Context().Done()
		_, err := x.Commit(&wire.Response{Status: 200, Length: 0})
		ended <- err
	})
	p := s.peer(t)
	p.Open(1, true, get()...)
	<-begun
	p.Do(p.WriteRSTStream(1, http2.ErrCodeCancel))
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Commit: %v", err)
	}
}

func TestH2AnswersInFull(t *testing.T) {
	s := newH2(t, func(x *wire.Exchange) {
		r := &wire.Response{Status: 200, Header: wire.Header{{Name: "X-Two", Value: "1"}, {Name: "X-Two", Value: "2"}}, Body: text("body"), Length: 4}
		switch x.Request.Target {
		case "/204":
			r = &wire.Response{Status: 204, Length: 0}
		case "/304":
			r = &wire.Response{Status: 304, Length: 0}
		case "/bare":
			r = &wire.Response{Status: 200, Length: -1}
		case "/big":
			r = &wire.Response{Status: 200, Body: io.NopCloser(io.LimitReader(endless{}, 3<<20)), Length: 3 << 20}
		}
		if _, err := x.Commit(r); err != nil {
			t.Errorf("%s: %v", x.Request.Target, err)
		}
	})
	p := s.peer(t)
	for i, c := range []struct {
		method, path string
		status, n    int
		length       []string
		bare         bool
	}{
		{"GET", "/", 200, 4, []string{"4"}, false},
		{"HEAD", "/", 200, 0, []string{"4"}, true},
		{"GET", "/204", 204, 0, nil, true},
		{"GET", "/304", 304, 0, nil, true},
		{"GET", "/bare", 200, 0, nil, true},
		{"GET", "/big", 200, 3 << 20, []string{"3145728"}, false},
	} {
		id := uint32(2*i + 1) //nolint:gosec
		p.Open(id, true, ":method", c.method, ":scheme", "https", ":path", c.path, ":authority", "a")
		a := p.Answer(id)
		if a.Status != c.status || len(a.Body) != c.n || !a.Whole || a.Bare != c.bare || cmp.Diff(c.length, a.Header["Content-Length"]) != "" || a.Header["Content-Type"] != nil {
			t.Errorf("%s %s: %d, %d bytes, %v %v %v", c.method, c.path, a.Status, len(a.Body), a.Header, a.Whole, a.Bare)
		}
		if c.path == "/" && cmp.Diff([]string{"1", "2"}, a.Header["X-Two"]) != "" {
			t.Errorf("%v", a.Header)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Events go out as they come, while other streams go on.
func TestH2EventsAreFlushedAsTheyCome(t *testing.T) {
	r, w := io.Pipe()
	s := newH2(t, func(x *wire.Exchange) {
		if x.Request.Target == "/other" {
			_, _ = x.Commit(&wire.Response{Status: 200, Length: 0})
			return
		}
		_, _ = x.Commit(&wire.Response{Status: 200, Header: wire.Header{{Name: "Content-Type", Value: "text/event-stream"}}, Body: r, Length: -1})
	})
	p := s.peer(t)
	p.Open(1, true, get()...)
	for a := p.So(1, 0); a.Status == 0 && p.Next() != nil; { // the head does not wait for the first event
	}
	sent := ""
	for i, event := range []string{"data: 1\n\n", "data: 2\n\n", "data: 3\n\n"} {
		sent += event
		p.Must(io.WriteString(w, event))
		if a := p.So(1, len(sent)); a.Body != sent {
			t.Fatalf("%q", a.Body)
		}
		id := uint32(2*i + 3) //nolint:gosec
		p.Open(id, true, ":method", "GET", ":scheme", "https", ":path", "/other", ":authority", "a")
		if a := p.Answer(id); a.Status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	_ = w.Close()
	if a := p.Answer(1); !a.Whole || a.Body != sent {
		t.Errorf("%+v", a)
	}
}

// A library gets on with it, and takes h2 where it offers both.
func TestH2WithALibrary(t *testing.T) {
	s := newH2(t, nil)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true} //nolint:gosec
	defer tr.CloseIdleConnections()
	body := strings.Repeat("0123456789abcdef", 64<<10)
	res, err := (&http.Client{Transport: tr}).Post("https://"+s.address+"/a?b", "text/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	if res.ProtoMajor != 2 || string(got) != body || err != nil || s.requests()[0].Target != "/a?b" {
		t.Errorf("%s, %d bytes, %v", res.Proto, len(got), err)
	}
}
