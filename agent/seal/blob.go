package seal

import (
	"bytes"
	"encoding/binary"
)

// blob is what a TPM has sealed, as the file of it holds it:
//
//	magic    7  "WARDTPM"
//	version  1  1
//	flags    1  bit 0: opens only in the secure boot state of when it was sealed
//	public   2+n, private 2+m  TPM2B, whose content the TPM checks
type blob struct {
	secureBoot      bool
	public, private []byte
}

const (
	blobMagic = "WARDTPM\x01"
	mostBlob  = 4096
	mostPart  = 1024 // of a keyed hash object, which has some hundred bytes
)

func (b *blob) marshal() []byte {
	out := append([]byte(blobMagic), 0)
	if b.secureBoot {
		out[len(blobMagic)] = 1
	}
	for _, part := range [][]byte{b.public, b.private} {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(part))), part...) //nolint:gosec // the TPM's own are shorter
	}
	return out
}

func parseBlob(text []byte) (*blob, error) {
	rest, ok := bytes.CutPrefix(text, []byte(blobMagic))
	if !ok || len(rest) < 1 || rest[0] > 1 || len(text) > mostBlob {
		return nil, ErrMalformed
	}
	b := &blob{secureBoot: rest[0] == 1}
	rest = rest[1:]
	for _, part := range []*[]byte{&b.public, &b.private} {
		if len(rest) < 2 {
			return nil, ErrMalformed
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n == 0 || n > mostPart || n > len(rest) {
			return nil, ErrMalformed
		}
		*part, rest = rest[:n], rest[n:]
	}
	if len(rest) > 0 {
		return nil, ErrMalformed
	}
	return b, nil
}
