package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
)

// ParseBody reads a table whose checksum is right, whatever its body.
func ParseBody(body []byte) (map[string]netip.Addr, error) {
	sum := sha256.Sum256(body)
	records, err := parseAddresses(append([]byte(addressesFormat+hex.EncodeToString(sum[:])+"\n"), body...))
	out := map[string]netip.Addr{}
	for name, r := range records {
		out[name] = r.Address
	}
	return out, err
}
