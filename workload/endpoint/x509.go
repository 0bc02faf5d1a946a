package endpoint

import "github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

// BundleDER is the certificates one after the other, without padding: WAPI §5.1.
func BundleDER(b *x509bundle.Bundle) (der []byte) {
	for _, c := range b.X509Authorities() {
		der = append(der, c.Raw...)
	}
	return der
}

// UniqueHint is the hint of the i-th identity, or "" where an earlier one has it already. WAPI §5.2.1, BA §5.2.1: a
// server MUST ensure that a hint that is set is unique in the response, and a client that meets one twice keeps the
// first message only. Leaving the hint out keeps both: every identity granted is in the response (WAPI §5.2.1), and the
// one that the client would have picked is the one that still bears the hint.
func UniqueHint(i int, hint func(int) string) string {
	for earlier := range i {
		if hint(earlier) == hint(i) {
			return ""
		}
	}
	return hint(i)
}
