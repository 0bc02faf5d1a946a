package policy

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/maypok86/otter/v2"
)

// memory keeps what Cedar sees of users and workloads from one call to the next: records and entities, never a decision.
// A record is found by the SHA-256 over the very values that it would be built of, so one that is found is the one that
// would have been built. What differs from call to call of one user is not kept.
type memory struct {
	cache *otter.Cache[[sha256.Size]byte, *types.Entity]
}

// maxRemembered bounds the records of a set that are kept, each of about half a kilobyte.
const maxRemembered = 4096

// mostKey is the longest key, in bytes, for which a record is kept: that of a user with a few dozen roles.
const mostKey = 2048

func newMemory() *memory {
	return &memory{otter.Must(&otter.Options[[sha256.Size]byte, *types.Entity]{MaximumSize: maxRemembered})}
}

// The kinds of what is kept.
const (
	contextKey byte = iota
	principalKey
)

// context is the context of the call.
func (c *call) context() types.Record {
	varying := c.model.varying
	if c.req.Body == nil {
		varying &^= c.model.body // no body is the same for all
	}
	if c.memory == nil || c.needs.has(varying) {
		return c.record(c.model.context)
	}
	return c.recall(contextKey, c.model.ofContext, func() *types.Entity {
		return &types.Entity{Attributes: c.record(c.model.context)}
	}).Attributes
}

// workload is the entity of the principal.
func (c *call) workload() types.Entity {
	build := func() *types.Entity {
		return &types.Entity{UID: c.principal, Parents: folders(string(c.principal.ID)), Attributes: c.record(c.model.principal)}
	}
	if c.memory == nil {
		return *build()
	}
	return *c.recall(principalKey, c.model.ofPrincipal, build)
}

// recall gives what was built before of the same values, or builds it.
func (c *call) recall(kind byte, of mask, build func() *types.Entity) *types.Entity {
	var buf [mostKey]byte
	key := c.key(buf[:0], kind, of)
	if len(key) > mostKey {
		return build()
	}
	sum := sha256.Sum256(key)
	if e, ok := c.memory.cache.GetIfPresent(sum); ok {
		return e
	}
	e := build()
	c.memory.cache.Set(sum, e)
	return e
}

// key appends what record reads to b, so that different values give different bytes: which attributes follow is said
// first, and each says where it ends.
func (c *call) key(b []byte, kind byte, of mask) []byte {
	b = binary.LittleEndian.AppendUint64(append(b, kind), uint64(c.needs&of))
	if kind == principalKey {
		return c.keyOf(appendText(b, c.in.Principal.Name), c.model.principal)
	}
	return c.keyOf(b, c.model.context)
}

func (c *call) keyOf(b []byte, table []attribute) []byte {
	for i := range table {
		a := &table[i]
		switch {
		case !c.needs.has(a.all):
		case a.text != nil:
			b = appendText(b, a.text(c)) // absent is empty
		case a.list != nil:
			list := a.list(c)
			b = append(b, presence(list != nil || !a.image))
			b = binary.AppendUvarint(b, uint64(len(list)))
			for _, s := range list {
				b = appendText(b, s)
			}
		case a.flag != nil:
			b = append(b, presence(a.flag(c)))
		case a.number != nil:
			b = binary.AppendVarint(b, a.number(c))
		case a.present == nil || a.present(c):
			b = c.keyOf(append(b, presence(true)), a.fields)
		default:
			b = append(b, presence(false))
		}
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func presence(there bool) byte {
	if there {
		return 1
	}
	return 0
}
