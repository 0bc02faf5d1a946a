package authority

import (
	"errors"
	"fmt"
	"time"
)

// Step is one step in replacing a CA by the next.
type Step string

// The steps.
const (
	Prepare  Step = "prepare"  // the next CA is made and published, and signs nothing yet
	Activate Step = "activate" // the prepared CA signs, and the one before it no longer does
	Retire   Step = "retire"   // a CA that does not sign leaves the bundle
)

// mostGenerations is how many CAs the bundle holds at most, so that forced rotation cannot make it grow without end.
const mostGenerations = 10

// Order asks for a step.
type Order struct {
	By         string        // who asks, for the event; "" stands for the authority itself
	Lead       time.Duration // Activate: how long the CA must have been published; 0 stands for Rotation.Lead
	Generation uint32        // Retire: which CA; 0 stands for the oldest that does not sign
	// Force takes the step although it cuts off processes that are not to blame: Activate before the lead has
	// passed, Retire while certificates of that CA are valid. For a CA whose key may be known to others.
	Force bool
}

// Event is a step that was taken, or that failed.
type Event struct {
	Step         Step
	At           time.Time
	By           string // "" stands for the authority itself
	Forced       bool
	Generation   uint32
	SubjectKeyID []byte
	NotAfter     time.Time // the CA's end
	Sequence     uint64    // of the bundle, after the step
	Err          error     // why the step was not taken; nil when it was
}

// ErrTransition: the step may not be taken now. The error is a *TransitionError.
var ErrTransition = errors.New("the CA cannot take this step now")

// TransitionError says why a step was refused. It is ErrTransition to errors.Is.
type TransitionError struct {
	Step     Step
	Problem  string
	Possible time.Time // from when on the same order would be accepted; zero when time alone does not help
	Advice   string
}

// Error says why, and what to do or until when to wait.
func (e *TransitionError) Error() string {
	text := fmt.Sprintf("cannot %s: %s", e.Step, e.Problem)
	if !e.Possible.IsZero() {
		text += "; possible from " + e.Possible.UTC().Format(time.RFC3339)
	}
	if e.Advice != "" {
		text += "; " + e.Advice
	}
	return text
}

// Is makes every TransitionError ErrTransition.
func (e *TransitionError) Is(target error) bool { return target == ErrTransition }

// Generation is one CA of the bundle.
type Generation struct {
	Number              uint32
	State               State
	SubjectKeyID        []byte
	NotBefore, NotAfter time.Time
	Published           time.Time // when it came into the bundle
	Activated, Replaced time.Time // when it began to sign, and when it stopped; zero while that is to come
	LastSVID            time.Time // the end of the SVID of this CA that lives longest; zero when it signed none that lives
	KeyPath             string    // where its key is; "" when it is in no file, or destroyed because it signs no more
	Sealed              bool      // whether the key is kept sealed
}

// Rotation is where the replacing of CAs is.
type Rotation struct {
	Generations []Generation  // all that are in the bundle, by number; just one is Active
	Sequence    uint64        // of the bundle
	Lead        time.Duration // how long the next CA is published before it signs
	Next        Step          // what Run will do next, when, and with which CA
	NextAt      time.Time
	NextCA      uint32
}
