package proxy

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// EgressOptions is what the local callers' side needs. Every field must be set.
type EgressOptions struct {
	Callers  Callers
	Services Services
	Pool     *Pool
	Audit    Recorder
	Observe  Observer
	Now      func() time.Time
}

// Egress takes local applications' plain calls and carries each, as the application itself, to the service's
// ingress ward.
type Egress struct {
	EgressOptions
	followed followed
}

// NewEgress makes the egress of this host.
func NewEgress(o EgressOptions) *Egress { return &Egress{EgressOptions: o} }

// Serve is the journey of a local call that leaves: it mirrors Ingress.Serve. The caller is known before a byte was
// read (the listener saw to that), and is checked again now that there is a request; the name only routes, the
// service's identity is pinned when the connection is made. Ingress is the record: what egress writes is not waited
// for, except when it is the one who answers.
func (e *Egress) Serve(x *wire.Exchange) {
	c := e.receive(x)
	defer c.end()
	for _, step := range [...]func() error{
		c.attest,  // which workload is this process, still?
		c.route,   // which service does the name mean?
		c.permit,  // may this workload call that service?
		c.rebuild, // without anything that claims an identity
		c.forward, // over mTLS with the caller's own SVID, to exactly that service
		c.relay,   // the reply, as ingress released it
	} {
		if err := step(); err != nil {
			c.refuse(err)
			return
		}
	}
}

// outbound is one call on its way through Serve.
type outbound struct {
	*Egress
	x     *wire.Exchange
	bound deadline // from forward on

	decision string
	received time.Time
	local    *Local
	caller   Caller
	service  *Service
	target   string
	request  wire.Request
	body     source
	sent     bool // something may have reached the service's ward
	reply    *wire.Response
	ended    bool // its record is made

	// What a call of the usual size is made of lies within it.
	room struct {
		fields [16]wire.Field
		answer wire.Response
	}
}

func (e *Egress) receive(x *wire.Exchange) *outbound {
	now := e.Now()
	return &outbound{Egress: e, x: x, decision: NewDecisionID(now), received: now}
}

// end gives back what the call holds. A call that has no record by now is on its way out of Serve by a panic.
func (c *outbound) end() {
	if !c.ended {
		c.fail()
	}
	c.bound.end()
	if c.reply != nil && c.reply.Body != nil {
		_ = c.reply.Body.Close()
	}
}

func (c *outbound) attest() error {
	c.local = c.x.Conn.(*Local)
	if c.local.refused != nil {
		return c.local.refused
	}
	if err := c.local.gone(); err != nil {
		return err
	}
	c.caller = c.local.caller
	return nil
}

// route finds the service. On a service's own socket the socket has decided; elsewhere the name has. A caller that
// uses Ward as its forward proxy (absolute-form, RFC 9112 §3.2.2) names the host in the target.
func (c *outbound) route() error {
	r := &c.x.Request
	if r.Method == "CONNECT" {
		return Refuse(CauseMethod, "CONNECT: there is nothing to tunnel to")
	}
	host := r.Host
	c.target = r.Target
	if rest, ok := cutScheme(r.Target); ok {
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			i = len(rest)
		}
		host, c.target = rest[:i], rest[i:]
		if !strings.HasPrefix(c.target, "/") {
			c.target = "/" + c.target
		}
	}
	if !strings.HasPrefix(c.target, "/") || strings.HasPrefix(c.target, "//") {
		return Refuse(CauseMalformed, "the request target is not a path")
	}
	name, err := hostName(host)
	if err != nil {
		return err
	}
	if s := c.local.service; s != nil {
		if name != s.Name && name != "localhost" {
			return Refuse(CauseMalformed, "the Host is neither %s nor localhost on this socket", s.Name)
		}
		name = s.Name // config may have changed since the socket was opened
	}
	if c.service = c.Services.Service(name); c.service == nil {
		return Refuse(CauseUnknownService, "no service of that name")
	}
	return nil
}

func cutScheme(target string) (string, bool) {
	if len(target) > 7 && strings.EqualFold(target[:7], "http://") {
		return target[7:], true
	}
	return target, false
}

// hostName gives the lower-case name of a Host field without its port, strictly: letters, digits, dots, hyphens.
func hostName(host string) (string, error) {
	name, port, hasPort := strings.Cut(host, ":")
	if hasPort {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '+' {
			return "", Refuse(CauseMalformed, "the Host's port is not a port")
		}
	}
	if name == "" || len(name) > 253 {
		return "", Refuse(CauseMalformed, "the Host is missing or too long")
	}
	for i := range len(name) {
		b := name[i]
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '.') {
			return "", Refuse(CauseMalformed, "the Host is not a name")
		}
	}
	if isAddress(name) {
		return "", Refuse(CauseUnknownService, "the Host is an address, not a service's name")
	}
	return strings.ToLower(name), nil
}

// isAddress reports whether name, which has no colon, is an IP address. One that has anything but digits and dots in it is
// none, and need not be parsed for that.
func isAddress(name string) bool {
	for i := range len(name) {
		if b := name[i]; !(b >= '0' && b <= '9' || b == '.') {
			return false
		}
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}

func (c *outbound) permit() error {
	if !c.service.MayCall(c.caller.ID()) {
		return Refuse(CauseNotACaller, "%s is not among the callers of %s", c.caller.ID(), c.service.Name)
	}
	return nil
}

func (c *outbound) rebuild() error {
	r := &c.x.Request
	if err := checkHop(r.Header); err != nil {
		return err
	}
	h := append(passOn(c.room.fields[:0], r.Header), wire.Field{Name: HeaderDecision, Value: c.decision})
	c.body.Reader = r.Body
	c.request = wire.Request{Method: r.Method, Target: c.target, Host: c.service.Name, Header: h, Body: &c.body, Length: r.Length}
	return nil
}

func (c *outbound) forward() error {
	c.bound.begin(c.x.Context(), c.service.MaxExchange)
	c.x.Until(c.bound.at)
	client, err := c.Pool.Client(c.caller, c.service)
	if err != nil {
		return err
	}
	if err := c.gather(); err != nil {
		return c.failure(err)
	}
	if err := c.local.leave(&c.bound); err != nil {
		return err
	}
	c.sent = true
	if c.reply, err = client.RoundTrip(&c.bound, &c.request); err != nil {
		return c.failure(err)
	}
	return nil
}

// failure says why there is no reply: what the caller did is not put down to the other end.
func (c *outbound) failure(err error) error {
	if own := c.body.fault(c.bound.Err() != nil); own != nil && c.x.Context().Err() == nil {
		return own
	}
	return upstreamFailure(c.x.Context(), &c.bound, err)
}

func (c *outbound) relay() error {
	status, peer := c.reply.Status, peerDecision(c.reply.Header)
	if peer == "" {
		return Refuse(CauseUpstreamReply, "%s answered without a decision", c.service.ID)
	}
	if err := c.local.carry(); err != nil {
		return err
	}
	answer := &c.room.answer
	*answer = wire.Response{Status: status, Header: c.reply.Header, Body: c.reply.Body, Length: c.reply.Length}
	n, err := c.x.Commit(answer)
	rec := c.record()
	rec.Peer, rec.Status, rec.Bytes, rec.Complete, rec.Effect = peer, status, n, err == nil, Allow.String()
	if status >= 400 {
		rec.Effect = ""
	}
	c.conclude(rec)
	return nil
}

func (c *outbound) record() *Record {
	r := &Record{Schema: RecordSchema, Stage: StageEgress, Hop: HopEgress, Time: c.Now(), Decision: c.decision,
		Method: method(c.x.Request.Method), Remote: c.x.Remote, Micros: c.Now().Sub(c.received).Microseconds()}
	if c.local != nil {
		r.Process = c.local.process
		if c.local.caller != nil {
			r.Caller, r.Remote = c.local.caller.ID().String(), ""
		}
	}
	if c.service != nil {
		r.Service = c.service.Name
	}
	return r
}

func (c *outbound) refuse(err error) {
	rec := c.record()
	rec.Stage = StageRefusal
	over := c.local.over()
	if over && c.x.Context().Err() == nil {
		err = c.local.gone() // whatever has come of that
	}
	answer := refusal(rec, err, c.decision)
	if over || c.local.refused != nil {
		answer.Close = true // who has an identity is decided when it connects, and may be decided otherwise by then
	}
	c.ended = true
	recordRefusal(c.Audit, rec)
	_, _ = c.x.Commit(answer)
	c.local.told()
	c.Observe.Call(HopEgress, rec.Service, rec)
}

func (c *outbound) conclude(rec *Record) {
	c.ended = true
	_, _ = c.Audit.Append(rec) // ingress is the record
	c.Observe.Call(HopEgress, rec.Service, rec)
}

// fail records a call that a defect in Ward has ended, as ingress does: the log says where, and its words, which may
// hold request data, are not recorded.
func (c *outbound) fail() {
	rec := c.record()
	if !c.sent {
		rec.Stage = StageRefusal
	}
	rec.Cause, rec.Effect, rec.Detail = CauseInternal, EffectError, "a defect in Ward: the daemon's log says where"
	c.conclude(rec)
}
