package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/wire"
)

// NewDecisionID makes the id under which a call is recorded, answered and explained: a ULID, so that ids sort by
// time and a prefix of one is enough to find it.
func NewDecisionID(now time.Time) string {
	var id ulid.ULID
	if err := id.SetTime(ulid.Timestamp(now)); err != nil {
		panic(err) // a clock that is in the year 10889
	}
	_, _ = rand.Read(id[6:]) // it does not fail; the process would
	var text [ulid.EncodedSize]byte
	_ = id.MarshalTextTo(text[:]) // which is of the size that it asks for
	return string(text[:])
}

// entry is a record with room for what it usually lists.
type entry struct {
	Record
	acted    [1]Acted
	patients [1]string
}

// record gives the trail's view of the call as it stands.
func (c *inbound) record(stage Stage) *Record {
	f := &c.facts
	e := &entry{}
	r := &e.Record
	*r = Record{
		Schema: RecordSchema, Stage: stage, Hop: HopIngress, Time: c.Now(), Decision: f.Decision,
		Peer: peerDecision(c.x.Request.Header), Service: f.Service,
		Purpose: f.Purpose, Method: method(c.x.Request.Method), Effect: Allow.String(),
		Policies: c.decision.Policies, PolicySet: c.decision.Set, Inputs: c.decision.Inputs,
		Micros: c.Now().Sub(f.Received).Microseconds(), Observed: c.observed, Would: c.would,
	}
	if stage == StageOutcome {
		r.Inputs = nil // they stand in the intent
	}
	if c.decision.Effect != Allow && c.would != nil {
		r.Policies = nil // they stand in Would: they have not let this call through
	}
	if f.Caller.IsZero() {
		r.Remote = c.x.Remote
	} else {
		r.Caller = f.Caller.String()
	}
	if t := c.token; t != nil { // also one that was not believed, because it is not this workload's
		r.Issuer, r.Client, r.TokenID = t.Client.Issuer, t.Client.ID, t.ID
		if t.User != nil {
			r.User, r.Name = t.User.Subject, t.User.Name
		}
	}
	if len(f.Interactions) == 1 {
		r.Interactions = e.acted[:0]
	}
	for i := range f.Interactions {
		in := &f.Interactions[i]
		r.Interactions = append(r.Interactions, Acted{Kind: in.Kind.String(), Type: in.Type, ID: in.ID, Version: in.Version, Params: in.ParamNames()})
	}
	r.Patients = c.patients
	if r.Patients == nil && c.act.Kind != 0 {
		if r.Patients = fhir.AppendPatients(e.patients[:0], &c.act); len(r.Patients) == 0 {
			r.Patients = nil
		}
		if f.Content != nil {
			r.Patients = f.Content.Patients
		}
	}
	return r
}

// method keeps a caller's method out of the trail unless it is one that exists.
func method(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE":
		return m
	}
	return "other"
}

// peerDecision reads the other ward's decision id; anything but one ULID is dropped.
func peerDecision(h wire.Header) string {
	id := sole(h, HeaderDecision)
	if _, err := ulid.ParseStrict(id); err != nil {
		return ""
	}
	return id
}

// refusal fills rec with why, and gives the answer.
func refusal(rec *Record, err error, decision string) *wire.Response {
	answer := Fault(err, decision)
	var r *Refusal
	if !errors.As(err, &r) {
		r = Refuse(CauseInternal, "%w", err)
	}
	rec.Cause, rec.Detail, rec.Status, rec.Effect = r.Cause, r.Detail, answer.Status, effect(answer.Status)
	return answer
}

// effect is what an answer of Ward's own means: that the call was refused, or that it could not be served.
func effect(status int) string {
	if status >= 500 && status != 501 {
		return EffectError
	}
	return Deny.String()
}

// EffectError is the effect of a call that was not refused but could not be served.
const EffectError = "error"

// recordTimeout bounds the wait for the trail when there is nothing left to disclose.
const recordTimeout = 5 * time.Second

// recordRefusal appends rec and waits until it is durable: no answered call is missing from the trail. A refusal
// discloses nothing, so a trail that cannot take it does not change the answer.
func recordRefusal(log Recorder, rec *Record) {
	receipt, err := log.Append(rec)
	if err != nil {
		return
	}
	ctx := &deadline{}
	ctx.begin(context.Background(), recordTimeout)
	defer ctx.end()
	_ = receipt.Wait(ctx)
}

// upstreamFailure says why a request got no reply. The engine's errors quote what it could not read, which may be
// anything: only those of the network get into the record.
func upstreamFailure(caller, exchange context.Context, err error) error {
	var refusal *Refusal
	var ne net.Error
	var op *net.OpError
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.Is(err, wire.ErrRequest):
		return Refuse(CauseMalformed, "the request cannot be passed on: its target or a field would not be one")
	case caller.Err() != nil:
		return Refuse(CauseTimeout, "the caller went away")
	case exchange.Err() != nil || errors.As(err, &ne) && ne.Timeout():
		return Refuse(CauseUpstreamTimeout, "no reply in time")
	case errors.As(err, &op):
		return Refuse(CauseUpstream, "%w", op)
	}
	return Refuse(CauseUpstream, "the connection gave no acceptable HTTP reply")
}

// newBytes is a body that is already here.
func newBytes(b []byte) io.ReadCloser {
	r := &here{}
	r.Reset(b)
	return r
}

type here struct{ bytes.Reader }

// Close implements io.Closer.
func (*here) Close() error { return nil }
