package audit

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"math/bits"
	"os"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// tree is the Merkle tree over the records. In memory it holds the roots of the complete subtrees at its right edge,
// one a level, which is all that growing needs; every hash also goes to the hashes file, in tlog's order of stored
// hashes, for proofs and for a quick start. The file is a cache: when it cannot be written the tree goes on without.
type tree struct {
	n     int64
	edge  [63]tlog.Hash // edge[i] is good where bit i of n is set
	leaf  hash.Hash
	sum   tlog.Hash // room for what goes into leaf and comes out of it
	file  *os.File
	path  string
	queue []byte // hashes that are not in the file yet
	at    int64  // offset of queue in the file
	hold  bool   // keep queue in memory until the records are known to be good
	lost  error  // why the file is no longer written
}

// hashesBuffer is how much queues before it is written: the file only has to be whole at rotation.
const hashesBuffer = 64 << 10

// newMemoryTree is a tree without a file.
func newMemoryTree() *tree { return &tree{leaf: sha256.New(), lost: os.ErrClosed} }

func newTree(file *os.File) *tree { return &tree{leaf: sha256.New(), file: file, path: file.Name()} }

// openHashes opens the cache at path, empty when it is missing.
func openHashes(path string, flag int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|flag, mode)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return f, nil
}

// resume sets the tree to its first n records, as the file has them.
func (t *tree) resume(n int64) error {
	t.n, t.queue, t.at = n, t.queue[:0], tlog.StoredHashCount(n)*tlog.HashSize
	for rest := uint64(n); rest != 0; rest &= rest - 1 {
		level := bits.TrailingZeros64(rest)
		h, err := t.stored(tlog.StoredHashIndex(level, n>>level-1))
		if err != nil {
			return err
		}
		t.edge[level] = h
	}
	return nil
}

func (t *tree) stored(i int64) (h tlog.Hash, err error) {
	_, err = t.file.ReadAt(h[:], i*tlog.HashSize)
	return h, err
}

// storedRoot computes the root over the first n records from the file alone.
func (t *tree) storedRoot(n int64) (tlog.Hash, error) {
	return tlog.TreeHash(n, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		all := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			var err error
			if all[i], err = t.stored(at); err != nil {
				return nil, err
			}
		}
		return all, nil
	}))
}

// leafHash is tlog.RecordHash without its allocations (RFC 6962 §2.1).
func (t *tree) leafHash(record []byte) tlog.Hash {
	t.leaf.Reset()
	t.sum[0] = 0
	t.leaf.Write(t.sum[:1])
	t.leaf.Write(record)
	t.leaf.Sum(t.sum[:0])
	return t.sum
}

// add appends a record's leaf. The hashes of the subtrees that it completes follow it in the file, as in
// tlog.StoredHashes.
func (t *tree) add(record []byte) {
	h, level := t.leafHash(record), 0
	t.queue = append(t.queue, h[:]...)
	for ; t.n>>level&1 == 1; level++ {
		h = tlog.NodeHash(t.edge[level], h)
		t.queue = append(t.queue, h[:]...)
	}
	t.edge[level] = h
	t.n++
	if len(t.queue) >= hashesBuffer && !t.hold {
		t.flush()
	}
}

// root is the tree's hash (RFC 6962 §2.1).
func (t *tree) root() tlog.Hash {
	if t.n == 0 {
		return sha256.Sum256(nil)
	}
	rest := uint64(t.n)
	h := t.edge[bits.TrailingZeros64(rest)]
	for rest &= rest - 1; rest != 0; rest &= rest - 1 {
		h = tlog.NodeHash(t.edge[bits.TrailingZeros64(rest)], h)
	}
	return h
}

// flush writes what queues to the file.
func (t *tree) flush() {
	if len(t.queue) > 0 && t.lost == nil {
		_, t.lost = t.file.WriteAt(t.queue, t.at)
	}
	t.at += int64(len(t.queue))
	t.queue = t.queue[:0]
}

// sync makes the file hold the whole tree.
func (t *tree) sync() {
	t.flush()
	if t.lost == nil {
		t.lost = unix.Fdatasync(int(t.file.Fd()))
	}
}

func (t *tree) close() error { return t.file.Close() }
