package proxy

import (
	"encoding/json"
	"time"
)

// Stage says where in its life a call was when the record was written.
type Stage string

// The stages. An intent without an outcome means that the ward stopped in between: it must be presumed that
// the data was disclosed or the change made.
const (
	StageIntent  Stage = "intent"  // ingress allowed the call and is about to disclose or forward
	StageOutcome Stage = "outcome" // how an intent ended
	StageRefusal Stage = "refusal" // the call was refused; nothing was disclosed
	StageEgress  Stage = "egress"  // the caller's own host saw the call leave and return
	StageEvent   Stage = "event"   // not a call: start, stop, config, identity
)

// RecordSchema names the shape of Record; fields are only ever added.
const RecordSchema = "ward.audit/1"

// Record is one line of the audit trail. It holds identifiers, never tokens, keys, query values or bodies.
type Record struct {
	Schema   string    `json:"schema"`
	Stage    Stage     `json:"stage"`
	Hop      Hop       `json:"hop,omitempty"` // the side that recorded
	Time     time.Time `json:"time"`
	Decision string    `json:"decision,omitempty"`
	// Peer is the decision id that the other ward gave to the same call.
	Peer string `json:"peer,omitempty"`

	Service string `json:"service,omitempty"`
	Caller  string `json:"caller,omitempty"`  // SPIFFE ID
	Process string `json:"process,omitempty"` // egress only: selectors of the local process
	Remote  string `json:"remote,omitempty"`  // peer address, for calls that carry no identity
	Issuer  string `json:"issuer,omitempty"`
	Client  string `json:"client,omitempty"`
	User    string `json:"user,omitempty"`
	Name    string `json:"name,omitempty"` // the user's display name, for operators
	TokenID string `json:"token_id,omitempty"`
	Purpose string `json:"purpose,omitempty"`

	Method       string   `json:"method,omitempty"`
	Interactions []Acted  `json:"interactions,omitempty"`
	Patients     []string `json:"patients,omitempty"` // ids of the patients whose data is concerned

	Effect    string          `json:"effect,omitempty"` // allow or deny
	Cause     Cause           `json:"cause,omitempty"`
	Detail    string          `json:"detail,omitempty"` // for operators; never sent to callers
	Policies  []string        `json:"policies,omitempty"`
	PolicySet string          `json:"policy_set,omitempty"`
	Inputs    json.RawMessage `json:"inputs,omitempty"`
	// Observed marks a call that was judged, but not refused for its judgement: the service observes.
	Observed bool `json:"observed,omitempty"`
	// Would is what enforcing would have done to an observed call; nil when it would have done the same.
	Would *Would `json:"would,omitempty"`

	Event string `json:"event,omitempty"` // StageEvent: what happened
	// Data is what an event is about, in a shape of its own; the package that writes the event says which.
	Data json.RawMessage `json:"data,omitempty"`

	Status   int   `json:"status,omitempty"`
	Bytes    int64 `json:"bytes,omitempty"`    // reply bytes released to the caller
	Micros   int64 `json:"micros,omitempty"`   // time since the request's head was read, µs
	Complete bool  `json:"complete,omitempty"` // outcome: the reply was delivered whole
}

// Would is what enforcing would have done to a call that was only observed.
type Would struct {
	Effect   string   `json:"effect"`             // deny, error (not refused, but not served) or EffectNarrow
	Cause    Cause    `json:"cause,omitempty"`    // the first finding: enforcing would have stopped there
	Status   int      `json:"status,omitempty"`   // of the answer that enforcing would have given
	Detail   string   `json:"detail,omitempty"`   // for operators; never sent to callers
	Policies []string `json:"policies,omitempty"` // that would have refused it
	Also     []Cause  `json:"also,omitempty"`     // what would still have refused it with the first finding mended
}

// EffectNarrow is a search that enforcing would have confined to the token's patient. Its Cause is CausePatient when
// the reply held somebody else's data, which the application would then not have got.
const EffectNarrow = "narrow"

// Acted is one interaction as the trail remembers it: parameter names, but no values.
type Acted struct {
	Kind    string   `json:"kind"`
	Type    string   `json:"type,omitempty"`
	ID      string   `json:"id,omitempty"`
	Version string   `json:"version,omitempty"`
	Params  []string `json:"params,omitempty"`
}
