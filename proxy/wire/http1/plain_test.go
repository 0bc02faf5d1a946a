package http1

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The grammar once more, plainly: expressions over whole messages, written from RFC 9112's, that know nothing of states,
// tables and pieces. What they accept is what the codec must accept, and nothing else.

const (
	tokenRE = "[!#$%&'*+\\-.^_`|~0-9A-Za-z]"
	textRE  = `[^\x00-\x08\x0a-\x1f\x7f]` // bytes above 0x7f are text, valid UTF-8 or not
)

// plain is the plain reader.
type plain struct{ request, reply, size, trailer, target, authority *regexp.Regexp }

func newPlain() *plain {
	fields := `((?:` + tokenRE + `+:` + textRE + `*\r\n)*)\r\n`
	return &plain{
		request:   regexp.MustCompile(`^(` + tokenRE + `{1,32}) ([!-~]+) HTTP/1\.([01])\r\n` + fields),
		reply:     regexp.MustCompile(`^HTTP/1\.([01]) ([1-5][0-9][0-9]) ` + textRE + `*\r\n` + fields),
		size:      regexp.MustCompile(`^([0-9a-fA-F]{1,15})(;` + textRE + `*)?\r\n`),
		trailer:   regexp.MustCompile(`^` + fields),
		target:    regexp.MustCompile(`^(?:[!-$&-~]|%[0-9a-fA-F]{2})*$`),
		authority: regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.\-]*)://([A-Za-z0-9\-._~:\[\]]+)(?:[/?]|$)`),
	}
}

// values are the values of a field. A value keeps its white space.
func values(fields, name string) (out []string, n int) {
	for line := range strings.SplitSeq(fields, "\r\n") {
		if line == "" {
			continue
		}
		n++
		if got, value, _ := strings.Cut(line, ":"); strings.EqualFold(got, name) {
			out = append(out, value)
		}
	}
	return out, n
}

func trimmed(s string) string { return strings.Trim(s, " \t") }

// framing gives the body's length as the fields have it: -1 chunked, -2 nothing said.
func (p *plain) framing(fields string, old bool) (length int64, ok bool) {
	lengths, n := values(fields, "content-length")
	codings, _ := values(fields, "transfer-encoding")
	switch {
	case n > 100, len(lengths) > 1, len(codings) > 1, len(lengths) > 0 && len(codings) > 0:
		return 0, false
	case len(codings) == 1:
		return -1, !old && (codings[0] == "chunked" || codings[0] == " chunked")
	case len(lengths) == 0:
		return -2, true
	}
	s := trimmed(lengths[0])
	if len(s) == 0 || len(s) > 18 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	length, err := strconv.ParseInt(s, 10, 64)
	return length, err == nil
}

// readRequest gives the head's length and the body's; ok: it is a request's head.
func (p *plain) readRequest(in string) (head int, length int64, ok bool) {
	m := p.request.FindStringSubmatch(in)
	if m == nil || len(m[0]) > 64<<10 || len(m[2]) >= 16<<10 {
		return 0, 0, false
	}
	method, target, old, fields := m[1], m[2], m[3] == "0", m[4]
	length, ok = p.framing(fields, old)
	hosts, _ := values(fields, "host")
	expects, _ := values(fields, "expect")
	if !ok || len(hosts) > 1 || len(hosts) == 0 && !old || !p.target.MatchString(target) || strings.Contains(target, "#") ||
		len(expects) > 1 || len(expects) == 1 && !is([]byte(trimmed(expects[0])), "100-continue") {
		return 0, 0, false
	}
	named, strip := "", false
	switch absolute := p.authority.FindStringSubmatch(target); {
	case method == "CONNECT":
		if absolute = p.authority.FindStringSubmatch("x://" + target); absolute == nil || absolute[2] != target {
			return 0, 0, false
		}
		named, strip = target, true
	case target[0] == '/', target == "*" && method == "OPTIONS":
	case absolute == nil:
		return 0, 0, false
	default:
		named, strip = absolute[2], strings.EqualFold(absolute[1], "http")
	}
	if named != "" && len(hosts) == 1 {
		host := trimmed(hosts[0])
		if strip {
			named, host = strings.TrimSuffix(named, ":80"), strings.TrimSuffix(host, ":80")
		}
		if !is([]byte(host), strings.ToLower(named)) {
			return 0, 0, false
		}
	}
	return len(m[0]), max(length, -1) + map[bool]int64{true: 1}[length == -2], true
}

func (p *plain) readReply(in, method string) (head int, length int64, ok bool) {
	m := p.reply.FindStringSubmatch(in)
	if m == nil || len(m[0]) > 64<<10 {
		return 0, 0, false
	}
	length, ok = p.framing(m[3], m[1] == "0")
	status, err := strconv.Atoi(m[2])
	switch {
	case err != nil, !ok, status == 101, method == "CONNECT" && status/100 == 2:
		return 0, 0, false
	case status < 200, status == 204:
		return len(m[0]), 0, length == -2 || length == 0
	case status == 304, method == "HEAD":
		length = 0
	}
	return len(m[0]), length, true
}

// readBody gives the payload and the body's end, or that it is none or not whole.
func (p *plain) readBody(in string, length int64) (payload string, n int, ok bool) {
	switch {
	case length == -2:
		return in, len(in), true
	case length >= 0:
		if int64(len(in)) < length {
			return "", 0, false
		}
		return in[:length], int(length), true
	}
	for extensions := 0; ; {
		m := p.size.FindStringSubmatch(in[n:])
		if m == nil {
			return "", 0, false
		}
		n += len(m[0])
		size, err := strconv.ParseInt(m[1], 16, 64)
		if extensions += len(m[2]); err != nil || extensions > 256 {
			return "", 0, false
		}
		if size == 0 {
			break
		}
		if int64(len(in)-n) < size+2 || in[n+int(size):n+int(size)+2] != "\r\n" {
			return "", 0, false
		}
		payload += in[n : n+int(size)]
		n += int(size) + 2
	}
	m := p.trailer.FindStringSubmatch(in[n:])
	if m == nil || len(m[0]) > 64<<10 {
		return "", 0, false
	}
	if _, fields := values(m[1], ""); fields > 100 {
		return "", 0, false
	}
	return payload, n + len(m[0]), true
}

// agree holds what was read of a stream against the plain reader.
func (p *plain) agree(t rapid.TB, in string, got reading, read func(string) (int, int64, bool)) {
	t.Helper()
	at := 0
	for i, m := range got.messages {
		head, length, ok := read(in[at:])
		if !ok || at != m.start || at+head != m.split {
			t.Fatalf("message %d of %q: %s; plainly: %v, %d bytes", i, in, m.head, ok, head)
		}
		at += head
		payload, n, ok := p.readBody(in[at:], length)
		if ok != m.whole || ok && (at+n != m.end || payload != m.body) {
			t.Fatalf("the body of message %d of %q: %+v; plainly: %v, %d bytes, %q", i, in, m, ok, n, payload)
		}
		if at += n; !ok {
			if i != len(got.messages)-1 {
				t.Fatalf("%q goes on behind a body that does not end", in)
			}
			return
		}
	}
	if _, _, ok := read(in[at:]); ok {
		t.Fatalf("%q: %d, %s; plainly there is a message at %d", in, got.status, got.why, at)
	}
}

func TestPlainly(t *testing.T) {
	p := newPlain()
	for _, r := range slices.Concat(requestRows(), bodyRows()) {
		t.Run(r.name, func(t *testing.T) {
			got := readRequests(r.in, len(r.in), &Limits{})
			p.agree(t, r.in, got, p.readRequest)
			agreeOnRequests(t, r.in, got)
		})
	}
	for _, r := range replyRows() {
		t.Run(r.name, func(t *testing.T) {
			got := readReplies(r.in, r.method, len(r.in), &Limits{})
			p.agree(t, r.in, got, func(s string) (int, int64, bool) { return p.readReply(s, r.method) })
			agreeOnReplies(t, r.in, r.method, got)
		})
	}
}
