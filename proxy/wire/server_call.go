package wire

import (
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

// call is an exchange of this engine's, with all that lasts as long as it. Each has its own: what a handler keeps
// of one beyond its end cannot touch the next.
type call struct {
	Exchange
	on    *admitted
	body  incoming
	asked asked
	keep  bool // the connection may go on after the answer
	sent  bool // an answer has gone out whole
	end   time.Time
	few   [12]Field // the header's, where there are no more
}

// asked is what an answer's form depends on.
type asked struct {
	head  bool // the method is HEAD
	minor int  // the version's
}

// call makes the exchange of the head that has been read, of n bytes, and uses these up. Its strings are parts of one
// copy of the head.
func (a *admitted) call(n int) *call {
	head := &a.desk.head
	text := string(a.buf[a.r : a.r+n])
	a.r += n
	cut := func(s http1.Span) string { return text[s.Start:s.End] }
	c := &call{on: a, keep: !head.Close}
	c.asked = asked{head: cut(head.Method) == "HEAD", minor: head.Minor}
	fields := c.few[:0]
	if head.Len() > cap(fields) {
		fields = make([]Field, 0, head.Len())
	}
	for i := range head.Len() {
		name, value := head.Field(i)
		if f := (Field{cut(name), cut(value)}); !framing(f.Name) {
			fields = append(fields, f)
		}
	}
	c.body.start(c, head)
	c.Exchange = Exchange{
		Request: Request{Method: cut(head.Method), Target: cut(head.Target), Host: cut(head.Host), Header: fields, Body: &c.body, Length: head.Length},
		Conn:    a.value,
		Remote:  a.remote,
		ctx:     a.ctx,
		by:      c,
	}
	return c
}

// framing reports whether a request's field of this name is the engine's own.
func framing(name string) bool {
	return fold(name, "host") || fold(name, "content-length") || fold(name, "transfer-encoding")
}

// fold compares without case; want is in lower case.
func fold(s, want string) bool {
	if len(s) != len(want) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

// bound implements engine.
func (c *call) bound(t time.Time) {
	a := c.on
	a.reading.mu.Lock()
	defer a.reading.mu.Unlock()
	c.end = t
	if last := t.Add(readGrace); !c.body.ended.Load() && last.Before(a.until) {
		a.until = last
		_ = a.SetReadDeadline(last)
	}
}

// last is when reads for the exchange fail at the latest; zero when nobody has said.
func (c *call) last() time.Time {
	c.on.reading.mu.Lock()
	defer c.on.reading.mu.Unlock()
	if c.end.IsZero() {
		return c.end
	}
	return c.end.Add(readGrace)
}

// answer implements engine.
func (c *call) answer(r *Response) (int64, error) {
	a := c.on
	c.keep = c.body.hold() && c.keep && !r.Close && !a.server.draining()
	r.Close = !c.keep
	if !c.end.IsZero() {
		end := c.end
		if now := time.Now(); now.After(end) {
			end = now
		}
		a.out.endAt(end.Add(writeGrace))
		defer a.out.endAt(time.Time{})
	}
	n, err := a.send(r, c.asked)
	c.sent = err == nil
	return n, err
}

// over ends the exchange once its handler has returned, and reports whether the connection goes on.
func (c *call) over(ok bool) bool {
	a := c.on
	c.body.stop()
	defer c.body.settle()
	a.server.leavePlace(a)
	if !ok || c.abort || !c.sent {
		a.aborted = true
		return false
	}
	if c.keep && c.body.drain() {
		return true
	}
	if !c.body.ended.Load() || a.r < a.w {
		a.linger()
	}
	return false
}
