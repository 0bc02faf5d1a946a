package proxy

import (
	"errors"
	"io"

	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/wire"
)

// inspects reports whether the reply is read whole before release: wherever it can hold more than was asked for.
func (c *inbound) inspects() bool {
	if c.act.Head {
		return false
	}
	switch c.act.Kind {
	case fhir.Search, fhir.HistoryInstance, fhir.HistoryType, fhir.HistorySystem:
		return true
	case fhir.Read, fhir.VRead:
		return c.facts.Grant.Confined
	}
	return false
}

func (c *inbound) forward() error {
	r := &c.room.request
	*r = wire.Request{
		Method: c.act.Method(),
		Target: c.act.TargetOf(c.Service.Base, c.x.Request.Target),
		Host:   c.Service.Name,
		Header: upstreamHeader(c.room.upstream[:0], &c.facts, &c.act, c.x.Request.Header, c.x.Conn.(*Peer).certificate(c.facts.Self)),
		Length: int64(len(c.payload)),
	}
	if len(c.payload) > 0 {
		r.Body = newBytes(c.payload)
	}
	reply, err := c.Upstream.RoundTrip(c.ctx, r)
	if err != nil {
		return upstreamFailure(c.x.Context(), c.ctx, err)
	}
	c.reply = reply
	switch s := reply.Status; {
	case s < 200 || s > 599: // RFC 9110 §15
		return Refuse(CauseUpstreamReply, "the FHIR server answers %d, which is no status", s)
	case s >= 300 && s < 400 && s != 304:
		return Refuse(CauseUpstreamReply, "the FHIR server redirects (%d)", s)
	}
	if err := fhir.PlainCoding(c.replied("Content-Encoding")); err != nil {
		return Refuse(CauseUpstreamReply, "the FHIR server encodes its reply unasked")
	}
	return nil
}

func (c *inbound) check() error {
	if !c.inspects() {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(c.reply.Body, c.MaxReply+1))
	switch {
	case c.ctx.Err() != nil:
		return upstreamFailure(c.x.Context(), c.ctx, err)
	case err != nil:
		return Refuse(CauseUpstreamReply, "the reply ended early")
	}
	if confined := c.facts.Grant.Confined; c.observed && confined {
		err = c.compare(body)
	} else {
		err = c.vouch(body, c.confined, confined)
	}
	if err != nil {
		return err
	}
	if int64(len(body)) <= c.MaxReply {
		_ = c.reply.Body.Close()
		c.reply.Body, c.reply.Length = newBytes(body), int64(len(body))
	}
	return c.append(StageIntent)
}

// replied gives the only value of a field of the reply, as one does.
func (c *inbound) replied(name string) string {
	return one(values(c.room.values[:0], c.reply.Header, name))
}

// vouch decides whether the reply, read whole, may go to a caller who is confined, as check says, or not.
func (c *inbound) vouch(body []byte, check fhir.Check, confined bool) error {
	if int64(len(body)) > c.MaxReply {
		return Refuse(CauseUpstreamReply, "the reply exceeds %d bytes", c.MaxReply)
	}
	facts, err := fhir.CheckReply(c.act, check, c.reply.Status, c.replied("Content-Type"), body, c.content())
	if err != nil {
		var fe *fhir.Error
		if errors.As(err, &fe) && fe.Class == fhir.Outside {
			return Refuse(CauseReplyOutside, "%s", fe.Error())
		}
		return Refuse(CauseUpstreamReply, "%s", err)
	}
	if facts.Withhold {
		return c.withheld(confined)
	}
	c.patients = facts.Patients
	return nil
}

// withheld is the answer in place of the server's refusal or fault. A caller who is confined to a patient learns no
// more than from an honest 404; but that the server is busy or broken says nothing of what it holds, and an
// application that took it for absence would do harm.
func (c *inbound) withheld(confined bool) error {
	s := c.reply.Status
	if confined && c.act.Kind != fhir.Search && s < 500 && s != 408 && s != 429 {
		return Refuse(CauseReplyOutside, "the FHIR server answered %d", s)
	}
	return Refuse(CauseUpstreamReply, "the FHIR server answered %d, and its words are not passed on", s)
}

// release hands the reply to the caller once the trail holds the intent durably, and records how it ended.
func (c *inbound) release() error {
	if err := c.durable(); err != nil {
		return err
	}
	reply := &c.room.answer
	*reply = wire.Response{Status: c.reply.Status, Header: callerHeader(c.room.caller[:0], &c.facts, c.Service, c.reply.Header), Body: c.reply.Body, Length: c.reply.Length}
	n, err := c.x.Commit(reply)
	rec := c.record(StageOutcome)
	rec.Status, rec.Bytes, rec.Complete = reply.Status, n, err == nil
	c.conclude(rec)
	return nil
}

// refuse answers a call that will not be served, once its record is in the trail.
func (c *inbound) refuse(err error) {
	stage := StageRefusal
	if c.intent != nil {
		stage = StageOutcome // the intent stands; this is how it ended
	}
	rec := c.record(stage)
	answer := refusal(rec, err, c.facts.Decision)
	c.ended = true
	recordRefusal(c.Audit, rec)
	_, _ = c.x.Commit(spoken(&c.x.Request, answer, c.facts.Decision)) // a caller that has gone away does not change the record
	c.Observe.Call(HopIngress, c.Service.Name, rec)
}

func (c *inbound) conclude(rec *Record) {
	c.ended = true
	_, _ = c.Audit.Append(rec) // the intent without an outcome will be reported as presumed disclosed
	c.Observe.Call(HopIngress, c.Service.Name, rec)
}

// fail records a call that a defect in Ward has ended: Serve is on its way out by a panic, which the engine catches and
// reports, and the connection closes without an answer, or in the middle of one. What the defect was stands in the
// log; its words may hold request data and are not recorded.
func (c *inbound) fail() {
	stage := StageRefusal
	if c.intent != nil {
		stage = StageOutcome
	}
	rec := c.record(stage)
	rec.Cause, rec.Effect, rec.Detail = CauseInternal, EffectError, "a defect in Ward: the daemon's log says where"
	c.conclude(rec)
}
