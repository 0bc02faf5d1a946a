package wire

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// Who gives way when there are too many handshakes under way.
func TestWhoGivesWay(t *testing.T) {
	from := func(last byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 32) }
	const places = 12
	for name, c := range map[string]struct {
		stalled []byte        // the sources of those that were first, in order
		after   time.Duration // the rest come
		rest    []byte
		want    uint64 // the number of who is to go
	}{
		"many stall from many sources, and a ward calls from one": {[]byte{1, 2, 3, 4, 5, 6, 7, 8}, stalls, []byte{9, 9, 9, 9, 9}, 1},
		"nobody has had its time: the source that has the most":   {[]byte{1, 2, 3, 4, 5, 6, 7, 8}, stalls / 2, []byte{9, 9, 9, 9, 9}, 9},
		"a flood from one source":                                 {[]byte{1, 2, 3}, stalls, []byte{9, 9, 9, 9, 9, 9, 9, 9, 9, 9}, 4},
		"one source's own stall":                                  {[]byte{9, 9, 9, 9, 9, 9, 9, 9}, stalls, []byte{1, 2, 3, 4, 5}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pending{max: places}
				var gone []uint64
				came := uint64(0)
				add := func(sources []byte) {
					for _, s := range sources {
						came++
						n := came
						p.add(from(s), func() { gone = append(gone, n) })
					}
				}
				add(c.stalled)
				time.Sleep(c.after) // of a bubble's clock
				add(c.rest)
				if len(gone) != 1 || gone[0] != c.want {
					t.Errorf("%v have given way, want %d", gone, c.want)
				}
			})
		})
	}
}
