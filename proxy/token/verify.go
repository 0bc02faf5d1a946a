package token

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/wardmesh/ward/proxy"
)

// MaxSize is the length in bytes of the longest token that is looked at.
const MaxSize = 16 << 10

// verified is a token whose signature and claims have been checked, with what must hold at every further use.
type verified struct {
	token     *proxy.Token
	issuer    *issuer
	key       [sha256.Size]byte // the key that signed it
	audience  []string
	notBefore time.Time
}

// Authenticate verifies the token in the values of a request's Authorization fields.
func (v *Verifier) Authenticate(ctx context.Context, authorization []string) (*proxy.Token, error) {
	raw, err := Bearer(authorization)
	if err != nil {
		v.metrics.refuse("", err)
		return nil, err
	}
	return v.Verify(ctx, raw)
}

// Verify returns the claims of raw, or a *proxy.Refusal. The Token is shared between callers and must not be
// changed. When the key is unknown, Verify may wait up to two seconds for the issuer's newest keys.
func (v *Verifier) Verify(ctx context.Context, raw string) (*proxy.Token, error) {
	if len(raw) > MaxSize {
		err := proxy.Refuse(proxy.CauseTokenMalformed, "longer than %d bytes", MaxSize)
		v.metrics.refuse("", err)
		return nil, err
	}
	sum := digest(raw)
	if e, ok := v.cache.GetIfPresent(sum); ok {
		if err := e.issuer.inForce(e, v.clock()); err != nil {
			v.cache.Invalidate(sum)
			v.metrics.refuse(e.issuer.Issuer.Issuer, err)
			return nil, err
		}
		if e.issuer.keys.holds(e.key) {
			e.issuer.cached.Inc()
			return e.token, nil
		}
		v.cache.Invalidate(sum) // its key is gone: as good as never seen
	}
	// The flight is not the first caller's alone: its going away must not fail the others.
	got, err, _ := v.flights.Do(string(sum[:]), func() (any, error) {
		e, err := v.verify(context.WithoutCancel(ctx), raw)
		if err != nil {
			return nil, err
		}
		v.cache.Set(sum, e)
		return e, nil
	})
	if err != nil {
		return nil, err
	}
	return got.(*verified).token, nil
}

// usualSize is the length in bytes up to which a token is hashed without a copy of it on the heap.
const usualSize = 2 << 10

// digest is the SHA-256 of raw.
func digest(raw string) [sha256.Size]byte {
	var usual [usualSize]byte
	return sha256.Sum256(append(usual[:0], raw...))
}

// verify checks a token from its bytes up. Nothing of it is believed before the signature, except which
// issuer's key to check that with.
func (v *Verifier) verify(ctx context.Context, raw string) (*verified, error) {
	named := ""
	refuse := func(err error) (*verified, error) {
		v.metrics.refuse(named, err)
		return nil, err
	}
	parts, err := split(raw)
	if err != nil {
		return refuse(err)
	}
	head, err := parseHeader(parts.header)
	if err != nil {
		return refuse(err)
	}
	c, err := parseClaims(parts.payload)
	if err != nil {
		return refuse(err)
	}
	is := v.issuers[c.issuer] // RFC 9068 §4: iss matches exactly; RFC 8725 §3.8
	if is == nil {
		return refuse(proxy.Refuse(proxy.CauseTokenIssuer, "its issuer is not configured"))
	}
	named = is.Issuer.Issuer
	if err := is.checkHeader(head); err != nil {
		return refuse(err)
	}
	k, err := is.keys.find(ctx, head,
		func(k *key) error { return checkSignature(raw, parts.payload, head, k) },
		func() error { _, err := is.accept(head, c, v.clock()); return err })
	if err != nil {
		return refuse(err)
	}
	e, err := is.accept(head, c, v.clock())
	if err != nil {
		return refuse(err)
	}
	e.key = k.id
	is.fresh.Inc()
	return e, nil
}

// checkSignature verifies raw with k, and that what was signed is payload. The library reads the header again; it finds what
// parseHeader found, as that leaves nothing that two parsers could read differently.
func checkSignature(raw string, payload []byte, head header, k *key) error {
	// RFC 8725 §3.1: exactly the one algorithm that was checked against the issuer's list and the key.
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{head.alg})
	if err != nil {
		return proxy.Refuse(proxy.CauseTokenMalformed, "not a signed JWT")
	}
	signed, err := jws.Verify(k.public)
	if err != nil {
		return proxy.Refuse(proxy.CauseTokenSignature, "its signature is not the issuer's")
	}
	if !bytes.Equal(signed, payload) {
		return proxy.Refuse(proxy.CauseInternal, "the signature covers other bytes than those that were read")
	}
	return nil
}

// inForce checks what may end while a token is remembered, and what would be fatal to get wrong once.
func (is *issuer) inForce(e *verified, now time.Time) error {
	if err := is.checkTimes(e.token.Expires, e.notBefore, now); err != nil {
		return err
	}
	if e.token.Client.Issuer != is.Issuer.Issuer {
		return proxy.Refuse(proxy.CauseTokenIssuer, "it was verified for another issuer")
	}
	return is.checkAudience(e.audience)
}

// checkTimes applies exp and nbf (RFC 7519 §4.1.4 and §4.1.5) with the issuer's leeway.
func (is *issuer) checkTimes(expires, notBefore, now time.Time) error {
	// The token must not be accepted on or after exp.
	if late := now.Sub(expires); late >= is.Leeway {
		return proxy.Refuse(proxy.CauseTokenExpired, "expired %s ago", late.Truncate(time.Second))
	}
	if early := notBefore.Sub(now); !notBefore.IsZero() && early > is.Leeway {
		return proxy.Refuse(proxy.CauseTokenExpired, "not valid for another %s", early.Truncate(time.Second))
	}
	return nil
}

// checkAudience wants one of our names among the token's audience (RFC 9068 §4, RFC 7519 §4.1.3, RFC 8725 §3.9).
func (is *issuer) checkAudience(audience []string) error {
	for _, a := range audience {
		if slices.Contains(is.Audience, a) {
			return nil
		}
	}
	return proxy.Refuse(proxy.CauseTokenAudience, "audience is not ours")
}

// cause is the cause of a refusal, CauseInternal for any other error.
func cause(err error) proxy.Cause {
	var r *proxy.Refusal
	if errors.As(err, &r) {
		return r.Cause
	}
	return proxy.CauseInternal
}
