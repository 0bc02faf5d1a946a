package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"
	"time"
)

// newestMeta is the journal's record of the highest generation there has been, so that no number comes again.
const newestMeta = "x509_ca_newest"

func newestNow(n uint32) Record {
	return Record{BucketMeta, []byte(newestMeta), strconv.AppendUint(nil, uint64(n), 10)}
}

func newestGeneration(ctx context.Context, o Options, store Store, cas []*caGeneration) (uint32, error) {
	var newest uint32
	for _, g := range cas {
		newest = max(newest, g.name.Generation)
	}
	v, err := store.Get(ctx, BucketMeta, []byte(newestMeta))
	if errors.Is(err, ErrNotFound) {
		return newest, nil
	}
	n, parseErr := strconv.ParseUint(string(v), 10, 32)
	if err = errors.Join(err, parseErr); err != nil {
		return 0, &CorruptError{Path: filepath.Join(o.Dir, journalFile), Problem: "the journal does not say how many CAs there have been", Advice: restore, Err: err}
	}
	return max(newest, uint32(n)), nil
}

// liveEnds finds, for each CA, the end of the certificate that lives longest.
func liveEnds(ctx context.Context, o Options, store Store) (map[uint32]time.Time, error) {
	ends := make(map[uint32]time.Time)
	err := store.Range(ctx, BucketSerials, serialKey(o.Clock(), nil), nil, func(k, v []byte) error {
		end, ok := serialEnd(k)
		var r serialRecord
		if err := json.Unmarshal(v, &r); err != nil || !ok {
			return &CorruptError{Path: filepath.Join(o.Dir, journalFile), Problem: "the record of a serial cannot be read", Advice: restore, Err: err}
		}
		n := max(r.CA, 1) // journals of before there were several do not say
		ends[n] = latest(ends[n], end)
		return nil
	})
	return ends, err
}

// caGeneration is one CA: what the journal says of it, and its key. It is never changed once others can see it.
type caGeneration struct {
	name   KeyName
	record keyRecord
	stored []byte // the record as it is in the journal
	cert   *x509.Certificate
	key    crypto.Signer // nil in an old one
	place  Place
}

func newGeneration(name KeyName, state State, cert *x509.Certificate, key crypto.Signer, now time.Time) *caGeneration {
	r := keyRecord{Class: X509CA, Generation: name.Generation, Use: X509CA.Use(), State: state,
		Public: publicDER(key.Public()), Certificate: cert.Raw, Created: now.UTC()}
	return &caGeneration{name: name, record: r, stored: encode(r), cert: cert, key: key}
}

// in is a copy in another state, for its maker to complete.
func (g *caGeneration) in(s State) *caGeneration {
	c := *g
	c.record.State = s
	return &c
}

// published is when the CA came into the bundle: it is recorded then, and in the bundle as soon as that is durable.
func (g *caGeneration) published() time.Time { return g.record.Created }

// life is how long the CA signs at most.
func (g *caGeneration) life() time.Duration {
	return g.cert.NotAfter.Sub(g.cert.NotBefore) - backdate
}

func (g *caGeneration) describe() Generation {
	out := Generation{Number: g.name.Generation, State: g.record.State, SubjectKeyID: bytes.Clone(g.cert.SubjectKeyId), NotBefore: g.cert.NotBefore, NotAfter: g.cert.NotAfter,
		Published: g.published(), Activated: g.record.Activated, Replaced: g.record.Replaced}
	if g.key != nil {
		out.KeyPath, out.Sealed = g.place.Path, g.place.Sealed
	}
	if g.record.State != Prepared && out.Activated.IsZero() {
		out.Activated = g.record.Created // the first CA has none to wait for
	}
	return out
}
