package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/wire"
)

// IngressOptions is what one service's ingress ward needs. Every field but MaxBody, MaxReply and Ready must be set.
type IngressOptions struct {
	Service *Service
	Self    Identity
	Denials Denials
	Tokens  Authenticator
	Binder  Binder
	Limits  Limiter
	Risk    Scorer
	Policy  Decider
	Audit   Recorder
	Observe Observer
	// Upstream sends a request to the FHIR server.
	Upstream RoundTripper
	Now      func() time.Time
	MaxBody  int64 // bytes of a request body; 0 stands for 4 MiB
	MaxReply int64 // bytes of a reply that must be checked whole before release; 0 stands for 8 MiB
}

// RoundTripper sends one request and returns the reply's head. Implemented by wire.Client.
type RoundTripper interface {
	RoundTrip(ctx context.Context, r *wire.Request) (*wire.Response, error)
}

// Ingress stands in front of one FHIR server and lets a call through only when workload, user, request and
// behaviour are verified.
type Ingress struct{ IngressOptions }

// NewIngress makes the ingress of one service.
func NewIngress(o IngressOptions) *Ingress {
	if o.MaxBody == 0 {
		o.MaxBody = 4 << 20
	}
	if o.MaxReply == 0 {
		o.MaxReply = 8 << 20
	}
	return &Ingress{o}
}

// Serve is the journey of a call that arrives. The order is the security argument: each step may rely on all that
// stand above it and on nothing below. Who calls is known before a byte is interpreted; what is asked is known
// completely before anyone's token is looked at; nothing costly happens for a caller who may not be here; the
// intent is in the trail before anything is disclosed or changed. While the service is only observed, the steps that
// judge note what they find and let the call go on: observe.go says which, and why not the others.
func (in *Ingress) Serve(x *wire.Exchange) {
	c := in.receive(x)
	defer c.end()
	for _, step := range [...]func() error{
		c.identify,   // the workload, from its verified SVID; the deny list
		c.admit,      // may it call this service at all? cheap, before parsing
		c.understand, // the interaction: one parser, canonical form, fail closed
		c.user,       // the token: verified, and bound to this workload
		c.charge,     // limits
		c.body,       // bounded, strictly parsed: what the resource says of itself
		c.scope,      // what the token's scopes allow; the patient's compartment
		c.risk,       // how unusual this is
		c.decide,     // policy: default deny, an error denies
		c.intend,     // the trail knows before the server does
		c.forward,    // the request as it was decided on, rebuilt
		c.check,      // the reply, where it must be vouched for
		c.release,    // the trail is durable, then the caller gets it
	} {
		if err := step(); err != nil {
			c.refuse(err)
			return
		}
	}
}

// inbound is one call on its way through Serve. Each step fills the fields that later ones read.
type inbound struct {
	*Ingress
	x     *wire.Exchange
	ctx   context.Context // &bound
	bound deadline

	facts    Facts
	act      fhir.Interaction
	token    *Token
	payload  []byte
	confined fhir.Check
	decision Decision
	intent   Receipt
	reply    *wire.Response
	patients []string
	ended    bool // its last record is made

	observed bool              // the service is: findings do not refuse
	unproven bool              // no token can be believed: nothing that rests on one is asked
	beyond   bool              // no scope allows it: policy, which reads the grant, is not asked
	narrowed *fhir.Interaction // the search as enforcing would forward it, where that differs
	would    *Would            // what has been found

	// What a call of the usual size is made of lies within it.
	room struct {
		interaction   [1]fhir.Interaction
		authorization [2]string
		values        [4]string
		request       wire.Request
		upstream      [16]wire.Field
		answer        wire.Response
		caller        [10]wire.Field
	}
}

func (in *Ingress) receive(x *wire.Exchange) *inbound {
	now := in.Now()
	c := &inbound{Ingress: in, x: x, facts: Facts{Decision: NewDecisionID(now), Received: now, Service: in.Service.Name},
		observed: now.Before(in.Service.ObserveUntil)}
	c.bound.begin(x.Context(), in.Service.MaxExchange)
	c.ctx = &c.bound
	x.Until(c.bound.at)
	return c
}

// end gives back what the call holds. A call that has no last record by now is on its way out of Serve by a panic.
func (c *inbound) end() {
	if !c.ended {
		c.fail()
	}
	c.bound.end()
	if c.reply != nil && c.reply.Body != nil {
		_ = c.reply.Body.Close()
	}
}

func (c *inbound) identify() error {
	p, ok := c.x.Conn.(*Peer)
	if !ok || p.Leaf == nil {
		return Refuse(CauseNoIdentity, "the connection has no verified certificate")
	}
	id := p.ID
	c.facts.Caller = id
	if !c.Now().Before(p.Leaf.NotAfter) {
		return Refuse(CausePeerChanged, "the caller's SVID has expired on this connection")
	}
	self, err := c.Self.GetX509SVID()
	if err != nil {
		return Refuse(CauseInternal, "this ward has no SVID: %w", err)
	}
	c.facts.Self = self.ID
	if c.Denials.Denied(id) {
		return Refuse(CauseDenyList, "%s is on the deny list", id)
	}
	return nil
}

func (c *inbound) admit() error {
	if !c.Service.MayCall(c.facts.Caller) {
		return Refuse(CauseNotACaller, "%s is not among the callers of %s", c.facts.Caller, c.Service.Name)
	}
	if err := checkHop(c.x.Request.Header); err != nil {
		return err
	}
	c.x.Request.Header = endToEnd(c.x.Request.Header[:0], c.x.Request.Header) // all that later steps and the FHIR server get to see
	return nil
}

func (c *inbound) understand() error {
	r := &c.x.Request
	if !c.Service.answersTo(r.Host) {
		return Refuse(CauseMalformed, "the Host is not %s", c.Service.Name)
	}
	act, err := fhir.Classify(r.Method, r.Target, c.Service.Base, c.values)
	if err != nil {
		return FromFHIR(err)
	}
	c.act = act
	c.room.interaction[0] = act
	c.facts.Interactions = c.room.interaction[:]
	return nil
}

// values gives the value of every occurrence of a field of the request, until it is asked for the next one's.
func (c *inbound) values(name string) []string {
	return values(c.room.values[:0], c.x.Request.Header, name)
}

func (c *inbound) user() error {
	authorization := values(c.room.authorization[:0], c.x.Request.Header, "Authorization")
	err := c.authenticate(authorization)
	if len(authorization) > 1 {
		return err // observed or not: nobody can say which of them the FHIR server would take
	}
	found, err := c.relax(err)
	if found {
		c.disbelieve()
	}
	return err
}

func (c *inbound) authenticate(values []string) error {
	if c.act.Kind == fhir.Capabilities && len(values) == 0 {
		return nil // what a server can do is no secret to a known workload; policy still decides
	}
	token, err := c.Tokens.Authenticate(c.ctx, values)
	if err != nil {
		return err
	}
	c.token = token
	c.facts.Client, c.facts.User, c.facts.Scopes, c.facts.Purpose = token.Client, token.User, token.Scopes, token.Purpose
	return c.Binder.Bind(c.facts.Caller, token)
}

func (c *inbound) charge() error {
	if c.unproven {
		return nil
	}
	_, err := c.relax(c.Limits.Charge(c.ctx, &c.facts))
	return err
}

func (c *inbound) scope() error {
	if c.act.Kind == fhir.Capabilities || c.unproven {
		return nil
	}
	found, err := c.relax(c.grant())
	if found {
		c.facts.Grant, c.confined, c.beyond = fhir.Grant{}, fhir.Check{}, true
	}
	return err
}

func (c *inbound) grant() error {
	grant, verdict := c.facts.Scopes.Permit(c.act)
	switch verdict {
	case fhir.Granted:
	case fhir.NeedsNarrowing:
		return Refuse(CauseNeedsImage, "only a scope with search parameters allows this")
	default:
		return Refuse(CauseScope, "no scope allows %s on %s", c.act.Kind, c.act.Type)
	}
	c.facts.Grant = grant
	if grant.Level != fhir.SystemLevel && c.facts.User == nil {
		return Refuse(CauseTokenClaims, "a patient/ or user/ scope without a user")
	}
	if !grant.Confined {
		return nil
	}
	if c.facts.User.Patient == "" {
		return Refuse(CauseTokenClaims, "a patient/ scope without a patient claim")
	}
	act, check, err := fhir.Confine(c.act, c.facts.User.Patient)
	if err != nil {
		return FromFHIR(err)
	}
	if c.facts.Content != nil {
		if err := c.facts.Content.OnlyWithin(act, c.facts.User.Patient); err != nil {
			return FromFHIR(err)
		}
	}
	c.confined, c.facts.Interactions[0] = check, act
	if c.observed {
		var differs bool
		if c.act, differs = widen(c.act, act); differs {
			c.narrowed = &act
		}
	} else {
		c.act = act
	}
	if act.Form {
		c.payload = c.act.FormBody()
	}
	return nil
}

func (c *inbound) risk() error {
	c.facts.Risk = c.Risk.Score(&c.facts)
	return nil
}

func (c *inbound) decide() error {
	if c.unproven || c.beyond {
		return nil
	}
	c.decision = c.Policy.Decide(&c.facts)
	if c.narrowed != nil {
		c.facts.Interactions[0] = c.act // policy has judged the narrowed search; this one will be made
	}
	_, err := c.relax(c.verdict())
	return err
}

func (c *inbound) verdict() error {
	switch {
	case len(c.decision.Errors) > 0:
		return Refuse(CausePolicyError, "%w", errors.Join(c.decision.Errors...))
	case c.decision.Effect == Allow:
		return nil
	case c.decision.Effect == NeedsImage:
		return Refuse(CauseNeedsImage, "a policy reads the stored resource")
	case len(c.decision.Policies) > 0:
		return Refuse(CausePolicy, "forbidden by %s", c.decision.Policies[0])
	}
	return Refuse(CausePolicy, "no permit matched")
}

// intend records that the call will be made. A write waits until the record is durable; anything else may travel
// meanwhile, because the reply waits instead (release). Where the reply is checked whole, the record waits for the
// patients found in it: nothing is disclosed before.
func (c *inbound) intend() error {
	if c.inspects() {
		return nil
	}
	if err := c.append(StageIntent); err != nil {
		return err
	}
	if c.act.Kind.Writes() {
		return c.durable()
	}
	return nil
}

func (c *inbound) append(stage Stage) error {
	receipt, err := c.Audit.Append(c.record(stage))
	if err != nil {
		return Refuse(CauseAudit, "%w", err)
	}
	c.intent = receipt
	return nil
}

func (c *inbound) durable() error {
	if err := c.intent.Wait(c.ctx); err != nil {
		return Refuse(CauseAudit, "%w", err)
	}
	return nil
}
