package http1

import (
	"bufio"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// A second reader beside ours. Whatever we take for a message, net/http takes for the same message, or refuses by a rule
// that stands here. What we refuse it may read: that is its laxness, and no byte of it goes any further.

// agreeOnRequests holds what was read of a stream against net/http.
func agreeOnRequests(t rapid.TB, in string, got reading) {
	t.Helper()
	for i, m := range got.messages {
		seen := m.what.(requestSeen)
		br := bufio.NewReaderSize(strings.NewReader(in[m.start:]), len(in)+16) // or a trailer is "suspiciously long" to it
		r, err := http.ReadRequest(br)
		if err != nil {
			if !refusesTarget(seen) && !refusesTrailer(seen.length, seen.fields) {
				t.Fatalf("request %d of %q: %s\nnet/http: %v", i, in, m.head, err)
			}
			continue
		}
		theirs := requestSeen{method: r.Method, target: r.RequestURI, host: r.Host, length: r.ContentLength, minor: r.ProtoMinor, close: r.Close}
		ours := seen
		ours.fields = nil
		// RFC 9112 §9.3: net/http goes on with an HTTP/1.0 client that says keep-alive. A proxy must not.
		if ours.minor == 0 {
			ours.close = theirs.close
		}
		if d := cmp.Diff(theirs, ours, cmp.AllowUnexported(requestSeen{})); d != "" {
			t.Fatalf("request %d of %q: -net/http +http1\n%s", i, in, d)
		}
		if d := cmp.Diff(r.Header, header(seen.fields, seen.length == -1, true), cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("fields of request %d of %q: -net/http +http1\n%s", i, in, d)
		}
		agreeOnBody(t, in, m, i == len(got.messages)-1 && got.status != 0, r.Body, br)
	}
}

// refusesTarget: net/http takes a target apart into a URL, and so refuses what is none, whoever decides on paths.
func refusesTarget(r requestSeen) bool {
	target := r.target
	if r.method == "CONNECT" {
		target = "http://" + target
	}
	_, err := url.ParseRequestURI(target)
	return err != nil
}

// refusesTrailer: net/http refuses a Trailer field that announces what frames a message. Here trailers are dropped
// whatever they are called.
func refusesTrailer(length int64, fields [][2]string) bool {
	return length == -1 && slices.ContainsFunc(fields, func(f [2]string) bool {
		return http.CanonicalHeaderKey(f[0]) == "Trailer" && slices.ContainsFunc(strings.Split(f[1], ","), func(name string) bool {
			return slices.Contains([]string{"Transfer-Encoding", "Trailer", "Content-Length"}, http.CanonicalHeaderKey(strings.Trim(name, " \t\r\n")))
		})
	})
}

// header is what net/http makes of these fields.
func header(fields [][2]string, isChunked, isRequest bool) http.Header {
	h := http.Header{}
	for _, f := range fields {
		h.Add(f[0], f[1])
	}
	h.Del("Transfer-Encoding")
	if isRequest {
		h.Del("Host")
	}
	if isChunked {
		h.Del("Trailer")
	}
	// RFC 9111 §5.4: it makes up a Cache-Control where there is a Pragma alone.
	if v := h["Pragma"]; len(v) > 0 && v[0] == "no-cache" && h["Cache-Control"] == nil {
		h.Set("Cache-Control", "no-cache")
	}
	return h
}

// agreeOnBody: the same payload, and the same place where the message ends. One whose framing we have refused is not
// asked about: it has not been taken for a message.
func agreeOnBody(t rapid.TB, in string, m message, refused bool, body io.ReadCloser, br *bufio.Reader) {
	t.Helper()
	if refused && !m.whole {
		return
	}
	payload, err := io.ReadAll(body)
	if (err == nil) != m.whole {
		t.Fatalf("%s of %q: whole: %v, net/http: %v", m.head, in, m.whole, err)
	}
	if string(payload) != m.body {
		t.Fatalf("%s of %q: payload %q, net/http %q", m.head, in, m.body, payload)
	}
	rest, err := io.ReadAll(br)
	if err != nil {
		t.Fatal(err)
	}
	if end := len(in) - len(rest); m.whole && end != m.end {
		t.Fatalf("%s of %q: ends at %d, net/http: at %d", m.head, in, m.end, end)
	}
}

// agreeOnReplies holds what was read of the replies to requests of that method against net/http.
func agreeOnReplies(t rapid.TB, in, method string, got reading) {
	t.Helper()
	for i, m := range got.messages {
		seen := m.what.(replySeen)
		br := bufio.NewReaderSize(strings.NewReader(in[m.start:]), len(in)+16)
		r, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			if !refusesTrailer(chunkedReply(seen), seen.fields) {
				t.Fatalf("reply %d of %q: %s\nnet/http: %v", i, in, m.head, err)
			}
			continue
		}
		theirs := replySeen{status: r.StatusCode, length: r.ContentLength, declared: seen.declared, minor: r.ProtoMinor, close: r.Close}
		ours := seen
		ours.fields = nil
		switch {
		case method == "HEAD": // its ContentLength is what the field says, for a body that does not come
			theirs.length, ours.length = r.ContentLength, seen.declared
		case ours.length == -2: // it has -1 for both
			if len(r.TransferEncoding) == 0 {
				theirs.length = -2
			}
		}
		// RFC 9112 §9.3: in HTTP/1.0 it takes keep-alive up, which is an extension. It also thinks that HEAD without a
		// length ends with the connection: more of its kind is never behind.
		if ours.minor == 0 {
			ours.close = theirs.close
		}
		if method == "HEAD" && theirs.close && !ours.close {
			t.Fatalf("reply %d of %q: net/http closes", i, in)
		}
		if d := cmp.Diff(theirs, ours, cmp.AllowUnexported(replySeen{})); d != "" {
			t.Fatalf("reply %d of %q to %s: -net/http +http1\n%s", i, in, method, d)
		}
		fields := header(seen.fields, chunkedReply(seen) == -1, false)
		if r.Close && seen.minor == 1 && r.Header["Connection"] == nil {
			fields.Del("Connection") // it has taken a close out of them, with all that stands beside it
		}
		if d := cmp.Diff(r.Header, fields, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("fields of reply %d of %q: -net/http +http1\n%s", i, in, d)
		}
		agreeOnBody(t, in, m, i == len(got.messages)-1 && got.status != 0, r.Body, br)
	}
}

// chunkedReply is -1 where a reply's fields say that it is chunked, whether a body comes or not.
func chunkedReply(r replySeen) int64 {
	for _, f := range r.fields {
		if strings.EqualFold(f[0], "Transfer-Encoding") {
			return -1
		}
	}
	return 0
}
