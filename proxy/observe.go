package proxy

import (
	"bytes"
	"errors"
	"io"
	"slices"

	"github.com/wardmesh/ward/proxy/fhir"
)

// # Observing
//
// A service can be observed until an instant that its config names (Service.ObserveUntil). Until then its ingress
// judges each call as it would, but lets it go on where the judgement rests on what an operator still has to set up:
// tokens, bindings, scopes, limits and policies. The record says what enforcing would have answered (Record.Would). From
// that instant on it enforces, without anybody's doing; a call belongs to the mode in which its head was read.
//
//	step          when observed
//	TLS, identify never relaxed: who calls is the one thing that observing must be sure of
//	admit         never relaxed: the callers list, the deny list, fields that claim an identity
//	understand    never relaxed: what was not understood cannot be recorded, and is not forwarded
//	user          a finding; several Authorization fields stay refused, since nobody can say which one counts
//	charge        a finding, unless the user step found something: enforcing would not have counted such a call
//	body          never relaxed: what is written must be known
//	scope         a finding, and the call stays as wide as it is today; so is a search that Ward could not confine
//	decide        a finding
//	intend        never relaxed: no call without its record
//	forward       never relaxed: the request is rebuilt, and the answer must be HTTP from the server it was meant for
//	check         what a server may not answer to anybody is refused; what only this caller may not see is a finding
//	release       never relaxed: the record is durable first
//
// # Facts after a finding
//
// Facts hold verified values only, and a finding does not change that. When the token cannot be believed, or is not
// this workload's to carry, the call has no user, client, scopes or purpose: no Ward-User and no Ward-Purpose is sent, and
// what would rest on them (scopes, policy) is not asked, because its answer would only follow from what is missing. When
// the scopes do not allow the call it has no grant, and policy, which reads the grant, is not asked. The record still
// names the user and the client of a token that was signed and current but not bound: they say whose token it was.
//
// The application's own Authorization is passed on as it came, believed or not. Without Ward the server gets it and
// judges it; a call that lost it would fail or, worse, be served as an anonymous one. Ward vouches for nothing by passing
// it on: what it vouches for stands in its own fields.
//
// # Which finding counts
//
// The first, because enforcing would have stopped there, and so it is the answer that the application would have
// had: Would.Cause and Would.Status. What is found later is found on facts that the first finding has not touched (limits
// before scopes or policy, policy before the reply), so it is true by itself and would still stand once the first has
// been mended. Would.Also lists it, so that an operator does not mend one thing only to meet the next.
//
// # Searches that would be narrowed
//
// A patient/ scope confines a search by a parameter that Ward adds. Observing does not add it: the application gets
// what it gets today. Policy is asked about the narrowed search, which is what enforcing would have decided on. The
// reply is then held against the compartment, and the record says EffectNarrow, with CausePatient if there was something
// in it that narrowing would have kept back. The one thing that is added are elements by which replies are checked, to a
// search that asked for a few elements only (R4 search.html#elements: a server may always return more). For the same
// reason a conditional read stays unconditional, as it is where the caller is confined: there is a body to look at.

// relaxes reports whether a refusal for this cause by a step that judges is a finding while a service is observed.
// A defect of Ward or a caller that went away is none: there was no judgement.
func relaxes(c Cause) bool {
	switch c {
	case CauseTokenMissing, CauseTokenMalformed, CauseTokenSignature, CauseTokenIssuer, CauseTokenAudience, CauseTokenExpired,
		CauseTokenClaims, CauseTokenBinding, CauseIssuerDown, // user
		CauseLimit,                                                                // charge
		CauseScope, CausePatient, CauseUnsupported, CauseTooLarge, CauseMalformed, // scope: the last three of what cannot be confined
		CausePolicy, CausePolicyError, CauseNeedsImage, // decide; a scope with parameters needs the image, too
		CauseReplyOutside, CauseUpstreamReply: // check, of a confined caller's reply
		return true
	}
	return false
}

// relax takes what a judging step has said: while the service is observed, a refusal becomes a finding, and found says
// so. It is called by these steps alone; the causes that they share with others (unsupported, malformed) stay
// refusals there.
func (c *inbound) relax(err error) (found bool, _ error) {
	if err == nil || !c.observed {
		return false, err
	}
	var r *Refusal
	if !errors.As(err, &r) || !relaxes(r.Cause) {
		return false, err
	}
	c.find(r)
	return true, nil
}

// find adds a finding to the call's record.
func (c *inbound) find(r *Refusal) {
	if c.would != nil {
		c.also(r.Cause)
		return
	}
	status := faults[r.Cause].status
	c.would = &Would{Effect: effect(status), Cause: r.Cause, Status: status, Detail: r.Detail}
	if c.decision.Effect != Allow {
		c.would.Policies = c.decision.Policies
	}
}

func (c *inbound) also(cause Cause) {
	if c.would.Cause != cause && !slices.Contains(c.would.Also, cause) {
		c.would.Also = append(c.would.Also, cause)
	}
}

// disbelieve takes out of the facts all that the token has said.
func (c *inbound) disbelieve() {
	f := &c.facts
	f.Client, f.User, f.Scopes, f.Purpose = Client{}, nil, fhir.Scopes{}, ""
	c.unproven = true
}

// widen gives the search to forward while the service is observed: as it came, but for the elements by which its reply
// is checked. narrowed is the same search as enforcing would forward it: parameters keep their places, new ones follow.
func widen(asked, narrowed fhir.Interaction) (forward fhir.Interaction, differs bool) {
	forward = asked
	forward.Params = slices.Clone(asked.Params)
	for i := range forward.Params {
		if forward.Params[i].Name == "_elements" {
			forward.Params[i] = narrowed.Params[i]
		}
	}
	return forward, !slices.Equal(forward.Params, narrowed.Params)
}

// compare holds the reply to a confined caller against what enforcing would let out. What may go to nobody, however wide
// the token, stays refused. A read by an unconfined caller is not looked into, so here nothing of it is refused either.
func (c *inbound) compare(body []byte) error {
	single := c.act.Kind == fhir.Read || c.act.Kind == fhir.VRead
	judged := c.vouch(body, c.confined, true)
	if judged != nil || !single {
		patients := c.patients
		if err := c.vouch(body, fhir.Check{}, false); err != nil && !single {
			if cause(judged) != cause(err) {
				_, _ = c.relax(judged)
			}
			return err
		}
		if judged == nil {
			c.patients = patients
		}
	}
	if int64(len(body)) > c.MaxReply { // released as it comes: what was read goes first
		c.reply.Body = &rest{Reader: io.MultiReader(bytes.NewReader(body), c.reply.Body), Closer: c.reply.Body}
	}
	if c.narrowed == nil || c.reply.Status >= 400 {
		_, err := c.relax(judged)
		return err
	}
	return c.narrows(judged)
}

// narrows notes that enforcing would have confined the search, and whether the application would have missed something.
func (c *inbound) narrows(judged error) error {
	switch {
	case cause(judged) != CauseReplyOutside && judged != nil:
		return judged
	case c.would == nil:
		c.would = &Would{Effect: EffectNarrow, Detail: "to the compartment of the token's patient"}
		if judged != nil {
			c.would.Cause, c.would.Detail = CausePatient, "the reply holds data of others than the token's patient"
		}
	case judged != nil:
		c.also(CausePatient)
	}
	return nil
}

// cause is why err refuses, "" when it does not.
func cause(err error) Cause {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Cause
	}
	return ""
}

// rest is a reply's body of which the beginning was read ahead.
type rest struct {
	io.Reader
	io.Closer
}
