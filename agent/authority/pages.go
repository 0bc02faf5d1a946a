package authority

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt trusts its file. A page whose header lies about its length makes it read past the mapping, or count to four
// billion, also in its own check. So the pages that it will follow are looked at before it sees the file: that each
// is the page it should be, ends inside the file, is led to once, and that what it holds lies within it.
// What the records say is checked by those who read them.
//
// The layout is that of bbolt's format 2, as its `bbolt page` and `bbolt surgery` commands document it. Numbers are
// in the byte order of the machine.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	headerSize  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16
	metaSize    = 64 // magic 4, version 4, page size 4, flags 4, root 16, freelist 8, high water 8, transaction 8, checksum 8
	bucketSize  = 16 // root page 8, sequence 8

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketFlag   = 0x01 // of a leaf's element

	deepest = 64 // more levels than a tree of 2^64 pages has
)

// pages is a journal file under inspection.
type pages struct {
	file     io.ReaderAt
	pageSize uint64
	high     uint64 // the number of pages
	seen     map[uint64]bool
}

// inspectPages checks the structure of a bbolt file of the given size.
func inspectPages(file io.ReaderAt, size int64) error {
	var root, freelist, newest uint64
	p := pages{file: file, seen: make(map[uint64]bool)}
	// Two meta pages take turns. The one with the later transaction counts, if it is whole. The page size stands in
	// each, so the second is looked for where page sizes can put it.
	for _, at := range []int64{0, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16} {
		b := make([]byte, metaSize)
		if _, err := file.ReadAt(b, at+headerSize); err != nil {
			continue // past the end
		}
		sum := fnv.New64a()
		sum.Write(b[:56])
		n := binary.NativeEndian
		pageSize := uint64(n.Uint32(b[8:]))
		if n.Uint32(b) != boltMagic || n.Uint32(b[4:]) != boltVersion || n.Uint64(b[56:]) != sum.Sum64() || at != 0 && uint64(at) != pageSize {
			continue
		}
		if tx := n.Uint64(b[48:]); p.pageSize == 0 || tx > newest {
			p.pageSize, root, freelist, p.high, newest = pageSize, n.Uint64(b[16:]), n.Uint64(b[32:]), n.Uint64(b[40:]), tx
		}
	}
	if p.pageSize < 512 || p.pageSize > 1<<16 || p.pageSize&(p.pageSize-1) != 0 {
		return errors.New("it has no valid beginning")
	}
	if whole := uint64(size) / p.pageSize; p.high < 2 || p.high > whole {
		return fmt.Errorf("it has been cut: %d pages are in use and %d are there", p.high, whole)
	}
	// Without a list bbolt would gather the free pages by a walk that nothing can stop. Ours always have one.
	if err := p.freelist(freelist); err != nil {
		return err
	}
	return p.tree(root, 0, true)
}

// load reads a page with its overflow, and checks its header.
func (p *pages) load(id uint64) (body []byte, flags uint16, count int, err error) {
	if id < 2 || id >= p.high {
		return nil, 0, 0, fmt.Errorf("page %d does not exist", id)
	}
	head := make([]byte, headerSize)
	if _, err := p.file.ReadAt(head, int64(id*p.pageSize)); err != nil {
		return nil, 0, 0, fmt.Errorf("page %d: %w", id, err)
	}
	n := binary.NativeEndian
	overflow := uint64(n.Uint32(head[12:]))
	if n.Uint64(head) != id || overflow >= p.high-id {
		return nil, 0, 0, fmt.Errorf("page %d has a wrong header", id)
	}
	for i := id; i <= id+overflow; i++ {
		if p.seen[i] {
			return nil, 0, 0, fmt.Errorf("page %d is used twice", i)
		}
		p.seen[i] = true
	}
	body = make([]byte, (overflow+1)*p.pageSize)
	if _, err := p.file.ReadAt(body, int64(id*p.pageSize)); err != nil {
		return nil, 0, 0, fmt.Errorf("page %d: %w", id, err)
	}
	return body, n.Uint16(head[8:]), int(n.Uint16(head[10:])), nil
}

// freelist checks the list of free pages. That none of them is in use is for bbolt's own check to see.
func (p *pages) freelist(id uint64) error {
	body, flags, count, err := p.load(id)
	if err != nil {
		return err
	}
	ids := body[headerSize:]
	number := uint64(count)
	if count == 0xffff { // the number did not fit, and stands before the list
		number, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if flags != freelistPage || number > uint64(len(ids)/8) {
		return fmt.Errorf("page %d is not a list of free pages", id)
	}
	for i := range number {
		if free := binary.NativeEndian.Uint64(ids[8*i:]); free < 2 || free >= p.high {
			return fmt.Errorf("the free page %d does not exist", free)
		}
	}
	return nil
}

// tree checks the pages of a bucket. Only the root bucket, at the top, holds buckets.
func (p *pages) tree(id uint64, depth int, top bool) error {
	if depth > deepest {
		return errors.New("it is nested too deeply")
	}
	body, flags, count, err := p.load(id)
	if err != nil {
		return err
	}
	switch flags {
	case leafPage:
		return p.leaf(body, count, top)
	case branchPage:
		if count == 0 {
			return fmt.Errorf("page %d leads nowhere", id)
		}
	default:
		return fmt.Errorf("page %d is of an unknown kind", id)
	}
	if headerSize+count*elementSize > len(body) {
		return fmt.Errorf("page %d is overfull", id)
	}
	for i := range count {
		at := headerSize + i*elementSize
		e := body[at : at+elementSize] // offset 4, key's size 4, page 8
		n := binary.NativeEndian
		if uint64(at)+uint64(n.Uint32(e))+uint64(n.Uint32(e[4:])) > uint64(len(body)) {
			return fmt.Errorf("page %d holds a key that ends outside it", id)
		}
		if err := p.tree(n.Uint64(e[8:]), depth+1, top); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the records of a leaf page, or of a small bucket that lies inside one.
func (p *pages) leaf(body []byte, count int, top bool) error {
	if headerSize+count*elementSize > len(body) {
		return errors.New("a page is overfull")
	}
	for i := range count {
		at := headerSize + i*elementSize
		e := body[at : at+elementSize] // flags 4, offset 4, key's size 4, value's size 4
		n := binary.NativeEndian
		key := uint64(at) + uint64(n.Uint32(e[4:]))
		value := key + uint64(n.Uint32(e[8:]))
		end := value + uint64(n.Uint32(e[12:]))
		if end > uint64(len(body)) {
			return errors.New("a record ends outside its page")
		}
		if isBucket := n.Uint32(e) == bucketFlag; !isBucket {
			if n.Uint32(e) != 0 || top {
				return errors.New("a record is of an unknown kind")
			}
			continue
		}
		v := body[value:end]
		if !top || len(v) < bucketSize {
			return errors.New("a bucket is where none belongs")
		}
		if root := n.Uint64(v); root != 0 {
			if err := p.tree(root, 0, false); err != nil {
				return err
			}
			continue
		}
		inline := v[bucketSize:]
		if len(inline) < headerSize || n.Uint16(inline[8:]) != leafPage {
			return errors.New("a bucket has no records")
		}
		if err := p.leaf(inline, int(n.Uint16(inline[10:])), false); err != nil {
			return err
		}
	}
	return nil
}
