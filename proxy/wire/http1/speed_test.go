package http1

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

const (
	speedRequest = "POST /fhir/Observation?patient=Patient/example&code=8867-4 HTTP/1.1\r\nHost: fhir.ehr.mesh.internal\r\nAccept: application/fhir+json\r\n" +
		"Accept-Encoding: gzip\r\nUser-Agent: fhir-kit-client/2.0.3\r\nX-Request-Id: 01M84FWY84HSTF3DSP12AGBSS6\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
		"Content-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n"
	speedReply = "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\nContent-Type: application/fhir+json;charset=utf-8\r\nETag: W/\"3\"\r\n" +
		"Last-Modified: Mon, 23 Nov 2026 09:59:00 GMT\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 12\r\n\r\n"
)

func speedHead() []byte {
	return []byte(speedRequest + "Authorization: Bearer " + strings.Repeat("a", 900) + "\r\n\r\n")
}

// relay is what a hop keeps between calls.
type relay struct {
	request RequestHead
	reply   ReplyHead
	body    Body
	out     []byte
	limits  Limits
}

// fields appends the fields of a head from a string of it, as the wire seam holds it.
func (r *relay) fields(h *Head, s string) {
	for i := range h.Len() {
		name, value := h.Field(i)
		var err error
		if r.out, err = AppendField(r.out, s[name.Start:name.End], s[value.Start:value.End]); err != nil {
			panic(err)
		}
	}
	r.out = append(r.out, "\r\n"...)
}

func (r *relay) payload(length int64, p []byte) {
	for r.body.Start(length, &r.limits); !r.body.Done(); {
		data, n, err := r.body.Next(p)
		if err != nil || n == 0 {
			panic("the body does not end")
		}
		p = p[n:]
		if len(data) == 0 {
			continue
		}
		if length < 0 {
			r.out = AppendChunk(r.out, len(data))
		}
		r.out = append(r.out, data...)
		if length < 0 {
			r.out = append(r.out, "\r\n"...)
		}
	}
	if length < 0 {
		r.out = append(AppendChunk(r.out, 0), "\r\n"...)
	}
}

// A request read and built anew, its body too, and the same for its reply: nothing is allocated once there was one.
func TestNothingIsAllocated(t *testing.T) {
	head := speedHead()
	request := append(head[:len(head):len(head)], "5\r\nhello\r\n7;a=b\r\n, world\r\n0\r\nX: y\r\n\r\n"...)
	reply := []byte(speedReply + "hello, world")
	requestText, replyText := string(head), speedReply // the one allocation of the wire seam, and it is not ours
	var r relay
	call := func() {
		n, err := r.request.Parse(request, &r.limits)
		if n != len(head) || err != nil {
			panic(err)
		}
		line, err := AppendRequestLine(r.out[:0], requestText[r.request.Method.Start:r.request.Method.End], requestText[r.request.Target.Start:r.request.Target.End])
		if err != nil {
			panic(err)
		}
		r.out = line
		r.fields(&r.request.Head, requestText)
		r.payload(r.request.Length, request[n:])

		if n, err = r.reply.Parse(reply, "POST", &r.limits); n != len(speedReply) || err != nil {
			panic(err)
		}
		r.out = AppendStatusLine(r.out, r.reply.Status)
		r.fields(&r.reply.Head, replyText)
		r.payload(r.reply.Length, reply[n:])
	}
	call()
	want := requestText + "5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n" + speedReply + "hello, world"
	if string(r.out) != want {
		t.Fatalf("built\n%s\nwant\n%s", r.out, want)
	}
	if n := testing.AllocsPerRun(100, call); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

// A head that comes byte by byte is looked at once: the bytes that Parse is shown again are not read again.
func TestByteByByte(t *testing.T) {
	head := []byte(get + strings.Repeat("X: "+strings.Repeat("x", 600)+"\r\n", 98) + "\r\n")
	var r RequestHead
	for n := 1; n < len(head); n++ {
		if used, err := r.Parse(head[:n], &Limits{}); used != 0 || err != nil {
			t.Fatal(used, err)
		}
		// What has been looked at could be anything by now.
		for i := max(0, n-700); i < n-650; i++ {
			head[i] = 0
		}
	}
	if n, err := r.Parse(head, &Limits{}); n != len(head) || err != nil || r.Len() != 99 {
		t.Error(n, err)
	}
}

func BenchmarkRequestHead(b *testing.B) {
	head := speedHead()
	b.Run("http1", func(b *testing.B) {
		b.SetBytes(int64(len(head)))
		b.ReportAllocs()
		var r RequestHead
		var l Limits
		for b.Loop() {
			if n, err := r.Parse(head, &l); n != len(head) || err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("net_http", func(b *testing.B) {
		b.SetBytes(int64(len(head)))
		b.ReportAllocs()
		src := bytes.NewReader(nil)
		in := bufio.NewReader(src)
		for b.Loop() {
			src.Reset(head)
			in.Reset(src)
			if _, err := http.ReadRequest(in); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReplyHead(b *testing.B) {
	head := []byte(speedReply)
	b.Run("http1", func(b *testing.B) {
		b.SetBytes(int64(len(head)))
		b.ReportAllocs()
		var r ReplyHead
		var l Limits
		for b.Loop() {
			if n, err := r.Parse(head, "GET", &l); n != len(head) || err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("net_http", func(b *testing.B) {
		b.SetBytes(int64(len(head)))
		b.ReportAllocs()
		src := bytes.NewReader(nil)
		in := bufio.NewReader(src)
		for b.Loop() {
			src.Reset(head)
			in.Reset(src)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				b.Fatal(err)
			}
			_ = resp.Body.Close()
		}
	})
}

func BenchmarkChunks(b *testing.B) {
	chunk := append(AppendChunk(nil, 32<<10), make([]byte, 32<<10)...)
	p := append(bytes.Repeat(append(chunk, "\r\n"...), 4), "0\r\n\r\n"...)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	var body Body
	var l Limits
	for b.Loop() {
		rest := p
		for body.Start(-1, &l); !body.Done(); {
			_, n, err := body.Next(rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}
