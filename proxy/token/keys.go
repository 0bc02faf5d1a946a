package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/wardmesh/ward/proxy"
)

// Bounds of a key set.
const (
	maxKeys    = 64
	minRSABits = 2048 // RFC 7518 §3.3 and §3.5
	maxRSABits = 4096 // a larger one costs every call
	maxRSAExp  = 1<<31 - 1
)

var (
	errNotObject = errors.New("not a JSON object")
	errNoKeys    = errors.New("not a JSON Web Key Set")
)

// key is one of an issuer's public keys.
type key struct {
	id     [sha256.Size]byte // of the key and what it may be used for
	kid    string
	public any
	algs   []jose.SignatureAlgorithm // that fit the key and are configured; never empty
}

// keySet is an issuer's keys as they were at one moment. It is never changed.
type keySet struct {
	keys    []key
	read    time.Time
	reading uint64 // which reading of the keyring's it came by; 0 is the one before any was wanted
}

// find returns the one key that fits.
func (s *keySet) find(h header) (*key, error) {
	var fit *key
	for i := range s.keys {
		k := &s.keys[i]
		if h.kid != "" && k.kid != h.kid || !slices.Contains(k.algs, h.alg) {
			continue
		}
		if fit != nil {
			return nil, proxy.Refuse(proxy.CauseTokenSignature, "it names no key, and several would fit")
		}
		fit = k
	}
	if fit == nil && h.kid != "" {
		return nil, errUnknownKey("no key with that kid")
	}
	if fit == nil {
		return nil, errUnknownKey("no key for its algorithm")
	}
	return fit, nil
}

// errUnknownKey is a refusal that newer keys might lift.
type errUnknownKey string

func (e errUnknownKey) Error() string { return string(e) }

// holds reports whether the key is in the set.
func (s *keySet) holds(id [sha256.Size]byte) bool {
	for i := range s.keys {
		if s.keys[i].id == id {
			return true
		}
	}
	return false
}

// parseKeySet reads a JWK Set (RFC 7517 §5). Keys that cannot be used are left out, each with a note for the
// operator where that is not what every issuer does; an error means that there is no set at all.
func parseKeySet(b []byte, algs []jose.SignatureAlgorithm) (*keySet, []string, error) {
	members, err := object(b)
	if err != nil {
		return nil, nil, errNoKeys
	}
	var values []jsontext.Value
	if members["keys"].Kind() != '[' || json.Unmarshal(members["keys"], &values) != nil {
		return nil, nil, errNoKeys
	}
	if len(values) > maxKeys {
		return nil, nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	var set keySet
	var notes []string
	for i, v := range values {
		k, err := parseKey(v, algs)
		switch {
		case err == nil:
			set.keys = append(set.keys, k)
		case !errors.Is(err, errOtherUse):
			notes = append(notes, fmt.Sprintf("key %d is not used: %v", i+1, err))
		}
	}
	clear, clashes := unambiguous(set.keys)
	if clashes > 0 {
		notes = append(notes, fmt.Sprintf("%d keys share a kid with another and are not used", clashes))
	}
	set.keys = clear
	return &set, notes, nil
}

// unambiguous leaves out keys by whose kid another would be found as well: whichever we took could be the wrong
// one. RFC 7517 §4.5 lets keys share a kid only where their types differ, and then no algorithm fits both.
func unambiguous(keys []key) (clear []key, clashes int) {
	for i, k := range keys {
		clash, again := false, false
		for j, other := range keys {
			switch {
			case i == j || k.kid == "" || k.kid != other.kid:
			case k.id == other.id:
				again = again || j < i
			default:
				clash = clash || slices.ContainsFunc(k.algs, func(a jose.SignatureAlgorithm) bool { return slices.Contains(other.algs, a) })
			}
		}
		switch {
		case clash:
			clashes++
		case !again:
			clear = append(clear, k)
		}
	}
	return clear, clashes
}

// errOtherUse is a key that is there for something else than signing access tokens.
var errOtherUse = errors.New("meant for something else")

// private are the members of a JWK that only its owner may know (RFC 7518 §6).
var private = [...]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

func parseKey(v jsontext.Value, algs []jose.SignatureAlgorithm) (key, error) {
	members, err := object(v)
	if err != nil {
		return key{}, errNotObject
	}
	for _, name := range private {
		if _, found := members[name]; found {
			// Whoever can read the key set can sign with it. The whole set is not thrown away for it: that
			// would keep the set before in use, which trusts the same key.
			return key{}, errors.New("its private part is public; it must be replaced")
		}
	}
	if use, found := members["use"]; found {
		if s, _ := text(use, 32); s != "sig" { // RFC 7517 §4.2
			return key{}, errOtherUse
		}
	}
	if ops, found := members["key_ops"]; found {
		var list []string
		if json.Unmarshal(ops, &list) != nil || !slices.Contains(list, "verify") { // RFC 7517 §4.3
			return key{}, errOtherUse
		}
	}
	for _, name := range []string{"kid", "alg"} {
		if v, found := members[name]; found {
			if _, ok := text(v, 256); !ok {
				return key{}, fmt.Errorf("%s is not a usable string", name)
			}
		}
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(v); err != nil {
		if errors.Is(err, jose.ErrUnsupportedKeyType) {
			return key{}, errOtherUse // RFC 7517 §5: unknown types should be ignored
		}
		return key{}, errors.New("it cannot be read")
	}
	fit, err := fitting(jwk.Key)
	if err != nil {
		return key{}, err
	}
	k := key{kid: jwk.KeyID, public: jwk.Key}
	for _, a := range fit {
		// RFC 7517 §4.4: a key that names an algorithm is for that one alone.
		if slices.Contains(algs, a) && (jwk.Algorithm == "" || jwk.Algorithm == string(a)) {
			k.algs = append(k.algs, a)
		}
	}
	if len(k.algs) == 0 {
		return key{}, errOtherUse
	}
	print, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return key{}, errors.New("it cannot be read")
	}
	k.id = sha256.Sum256(fmt.Appendf(print, "%q%q", k.kid, k.algs))
	return k, nil
}

// fitting lists the algorithms that a key can verify (RFC 8725 §3.1: a key must not serve another's algorithm).
func fitting(public any) ([]jose.SignatureAlgorithm, error) {
	switch p := public.(type) {
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < minRSABits || n > maxRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits; %d to %d are accepted", n, minRSABits, maxRSABits)
		}
		if p.E < 3 || p.E%2 == 0 || p.E > maxRSAExp {
			return nil, errors.New("an RSA key with an unusable exponent")
		}
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, nil
	case *ecdsa.PublicKey:
		switch p.Curve.Params().BitSize { // RFC 7518 §3.4
		case 256:
			return []jose.SignatureAlgorithm{jose.ES256}, nil
		case 384:
			return []jose.SignatureAlgorithm{jose.ES384}, nil
		case 521:
			return []jose.SignatureAlgorithm{jose.ES512}, nil
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}, nil // RFC 8037 §3.1
	}
	return nil, errOtherUse
}
