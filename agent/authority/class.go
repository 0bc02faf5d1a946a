package authority

import (
	"fmt"
	"slices"
)

// Class is a kind of key. Each class has keys of its own, and a value of its own for the `use` of its public keys
// in JWK sets: a key that signs one kind of statement can then never be taken for one that signs another.
type Class string

// The classes.
const (
	X509CA     Class = "x509-ca"     // signs X.509-SVIDs
	JWTSVID    Class = "jwt-svid"    // signs JWT-SVIDs
	WITSVID    Class = "wit-svid"    // signs WIT-SVIDs
	WardToken  Class = "ward-token"  // signs exchanged user tokens
	WardDevice Class = "ward-device" // signs device tokens
)

// Classes lists every class. Only X509CA has keys so far.
func Classes() []Class { return []Class{X509CA, JWTSVID, WITSVID, WardToken, WardDevice} }

// Use is the `use` of the class's public keys in a JWK set.
func (c Class) Use() string {
	if c == X509CA {
		return "x509-svid" // SPIFFE Trust Domain and Bundle §4.2.2
	}
	return string(c)
}

// Valid reports whether c is one of Classes.
func (c Class) Valid() bool { return slices.Contains(Classes(), c) }

// State is where a key is in its life.
type State string

// The states. A key is published while it is in any of them, and signs while it is active.
const (
	Prepared State = "prepared"
	Active   State = "active"
	Old      State = "old"
)

// KeyName names one key: the class and, since keys are replaced, which in turn it is, from 1 on.
type KeyName struct {
	Class      Class
	Generation uint32
}

// String is the base of the key's file names: `x509-ca-1`.
func (n KeyName) String() string { return fmt.Sprintf("%s-%d", n.Class, n.Generation) }

// record is the key of a KeyName in the journal. It sorts by class and then by generation.
func (n KeyName) record() []byte { return fmt.Appendf(nil, "%s/%010d", n.Class, n.Generation) }
