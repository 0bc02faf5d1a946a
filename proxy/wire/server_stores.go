package wire

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

const (
	deskSize = 8 << 10
	bulkSize = 128 << 10
	// bulkRoom is what a bulk has beyond its bytes: for the headers and tags of the records they are cut into.
	bulkRoom = 1 << 10
)

// desk is what a connection needs to read a head, or to write an answer that is not long.
type desk struct {
	head http1.RequestHead
	buf  [deskSize]byte
}

// bulk is what a long body is moved in.
type bulk [bulkSize + bulkRoom]byte

// stores keep what connections take only for as long as they use it.
type stores struct{ desks, bulks sync.Pool }

func (s *stores) desk() *desk {
	if d, ok := s.desks.Get().(*desk); ok {
		return d
	}
	return new(desk)
}

func (s *stores) bulk() *bulk {
	if b, ok := s.bulks.Get().(*bulk); ok {
		return b
	}
	return new(bulk)
}

// dates keeps the current second's Date field (RFC 9110 §6.6.1).
type dates struct{ last atomic.Pointer[date] }

type date struct {
	second int64
	line   []byte
}

// line is the field's line.
func (d *dates) line(now time.Time) []byte {
	second := now.Unix()
	last := d.last.Load()
	if last == nil || last.second != second {
		line := now.UTC().AppendFormat(nil, "Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")
		last = &date{second, line}
		d.last.Store(last)
	}
	return last.line
}
