package wire

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/wardmesh/ward/proxy/wire/http1"
)

const deskSize = 8 << 10

// desk is what a connection needs to read a head, or to write an answer that is not long.
type desk struct {
	head http1.RequestHead
	buf  [deskSize]byte
}

// stores keep what connections take only for as long as they use it.
type stores struct{ desks sync.Pool }

func (s *stores) desk() *desk {
	if d, ok := s.desks.Get().(*desk); ok {
		return d
	}
	return new(desk)
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
