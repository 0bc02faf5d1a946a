package authority

import (
	"context"
	"errors"
)

// Bucket is one table of the journal.
type Bucket string

// The buckets.
const (
	BucketMeta    Bucket = "meta"    // format, trust_domain, bundle_sequence
	BucketKeys    Bucket = "keys"    // KeyName → public half, certificate, state
	BucketSerials Bucket = "serials" // notAfter and serial of each certificate in use → whose it is
	BucketJoins   Bucket = "joins"   // hosts' join tokens
	BucketDeny    Bucket = "deny"    // the deny list
)

// Buckets lists every bucket.
func Buckets() []Bucket {
	return []Bucket{BucketMeta, BucketKeys, BucketSerials, BucketJoins, BucketDeny}
}

// MaxWrites is how many writes and conditions a transaction may have, together. etcd's own bound is 128.
const MaxWrites = 100

// Errors of a Store.
var (
	ErrNotFound = errors.New("not in the journal")
	ErrConflict = errors.New("the journal has changed meanwhile")
)

// Store is the journal: small records in buckets, sorted by key. It holds public halves, serials, joins and the
// deny list, never a private key. Implemented by a bbolt file here; etcd is to be the second. Both must pass
// package storetest.
type Store interface {
	// Get returns a record's value, or ErrNotFound. The caller owns the value.
	Get(ctx context.Context, b Bucket, key []byte) ([]byte, error)
	// Range calls f with each record of b whose key is at least from and, unless to is nil, less than to, in
	// order, until f returns an error, which Range returns. The slices are f's only until it returns, and f must
	// not call the store.
	Range(ctx context.Context, b Bucket, from, to []byte, f func(key, value []byte) error) error
	// Commit does all of tx or none of it. When it returns nil, tx is durable. It returns ErrConflict when a
	// condition of tx does not hold.
	Commit(ctx context.Context, tx Tx) error
	// Close releases the journal. No other method may be called afterwards.
	Close() error
}

// Tx is a transaction. It has at most MaxWrites conditions and writes together, and no two writes to one key.
type Tx struct {
	If     []Condition
	Put    []Record
	Delete []Record // only Bucket and Key are used; deleting what is not there is no error
}

// Condition holds while the record has this value, or with a nil Value while there is no such record.
type Condition Record

// Record is one record. A value may not be empty, nor a key.
type Record struct {
	Bucket     Bucket
	Key, Value []byte
}
