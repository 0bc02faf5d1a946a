package http1

import (
	"errors"
	"fmt"
	"strings"
)

// message is one message as it was read.
type message struct {
	head  string // described
	what  any    // a requestSeen or replySeen
	body  string
	whole bool // its end has been read
	end   int  // where in the stream
	start int  // of its head
	split int  // where its head ends
}

// reading is what was read of a stream.
type reading struct {
	messages []message
	status   int // of the error that ended it; 0: none
	why      string
	used     int // bytes
}

// requestSeen is what a request's head was read as.
type requestSeen struct {
	method, target, host string
	length               int64
	minor                int
	close                bool
	fields               [][2]string
}

type replySeen struct {
	status           int
	length, declared int64
	minor            int
	close            bool
	fields           [][2]string
}

func pairs(h *Head) (out [][2]string) {
	for i := range h.Len() {
		out = append(out, [2]string{string(h.Name(i)), string(h.Value(i))})
	}
	return out
}

func describe(r *RequestHead) string {
	b := r.Bytes()
	s := fmt.Sprintf("%s %q 1.%d", r.Method.Of(b), r.Target.Of(b), r.Minor)
	if r.HasHost {
		s += fmt.Sprintf(" host %q", r.Host.Of(b))
	}
	s += fmt.Sprintf(" length %d", r.Length)
	if r.Close {
		s += " close"
	}
	if r.Continue {
		s += " continue"
	}
	return s + " " + fields(&r.Head)
}

func describeReply(r *ReplyHead) string {
	s := fmt.Sprintf("%d 1.%d length %d declared %d", r.Status, r.Minor, r.Length, r.Declared)
	if r.Close {
		s += " close"
	}
	return s + " " + fields(&r.Head)
}

func fields(h *Head) string {
	var out []string
	for i := range h.Len() {
		out = append(out, fmt.Sprintf("%s=%q", h.Name(i), h.Value(i)))
	}
	return "[" + strings.Join(out, " ") + "]"
}

// readRequests reads a stream of requests that comes in pieces.
func readRequests(in string, size int, l *Limits) reading {
	var r RequestHead
	return readStream(in, size, l, func(b []byte) (int, message, int64, error) {
		n, err := r.Parse(b, l)
		if n == 0 {
			return 0, message{}, 0, err
		}
		b = r.Bytes()
		seen := requestSeen{string(r.Method.Of(b)), string(r.Target.Of(b)), string(r.Host.Of(b)), r.Length, r.Minor, r.Close, pairs(&r.Head)}
		return n, message{head: describe(&r), what: seen}, r.Length, nil
	})
}

// readReplies reads the replies to requests of that method.
func readReplies(in, method string, size int, l *Limits) reading {
	var r ReplyHead
	return readStream(in, size, l, func(b []byte) (int, message, int64, error) {
		n, err := r.Parse(b, method, l)
		if n == 0 {
			return 0, message{}, 0, err
		}
		seen := replySeen{r.Status, r.Length, r.Declared, r.Minor, r.Close, pairs(&r.Head)}
		return n, message{head: describeReply(&r), what: seen}, r.Length, nil
	})
}

func readStream(in string, size int, l *Limits, parse func([]byte) (int, message, int64, error)) (out reading) {
	var body Body
	var buf []byte
	read := 0
	fail := func(err error) reading {
		var e *Error
		if !errors.As(err, &e) || e.Why == "" {
			panic(fmt.Sprintf("%#v is no error of this package", err))
		}
		out.status, out.why = e.Status, e.Why
		return out
	}
	at := &message{whole: true}
	for {
		for {
			if at.whole {
				if len(buf) == 0 {
					break
				}
				n, m, length, err := parse(buf)
				if err != nil {
					return fail(err)
				}
				if n == 0 {
					break
				}
				if n > len(buf) {
					panic("it reads beyond")
				}
				m.start, m.split = out.used, out.used+n
				out.messages = append(out.messages, m)
				at = &out.messages[len(out.messages)-1]
				out.used += n
				buf = buf[n:]
				body.Start(length, l)
			}
			data, n, err := body.Next(buf[:len(buf):len(buf)])
			at.body += string(data)
			out.used += n
			buf = buf[n:]
			if err != nil {
				return fail(err)
			}
			if body.Done() {
				at.whole, at.end = true, out.used
			} else if n == 0 {
				break
			}
		}
		if read == len(in) {
			if !at.whole && body.EOF() == nil {
				at.whole, at.end = true, out.used
			}
			return out
		}
		if len(in) < 4096 { // a buffer of its own each time: what a Head had kept of the last one would show
			old := buf
			buf = append([]byte(nil), old...)
			clear(old)
		}
		next := min(read+size, len(in))
		buf = append(buf, in[read:next]...)
		read = next
	}
}
