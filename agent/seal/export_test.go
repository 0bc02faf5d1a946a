package seal

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// Reblob parses a TPM's blob and writes it again.
func Reblob(text []byte) ([]byte, error) {
	b, err := parseBlob(text)
	if err != nil {
		return nil, err
	}
	return b.marshal(), nil
}

// RecodeSVID parses the record of a kept SVID and writes it again.
func RecodeSVID(text []byte) ([]byte, error) {
	s, err := decodeSVID(text)
	if err != nil {
		return nil, err
	}
	return encodeSVID(*s)
}

// EncodeSVID writes the record of a kept SVID.
func EncodeSVID(s SVID) ([]byte, error) { return encodeSVID(s) }

// RecodeBundle parses the record of a kept bundle and writes it again.
func RecodeBundle(text []byte) ([]byte, error) {
	b, err := decodeBundle(text, spiffeid.RequireTrustDomainFromString("clinic.example"))
	if err != nil {
		return nil, err
	}
	return encodeBundle(b)
}
