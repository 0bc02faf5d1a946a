package daemon

import (
	"strings"
	"testing"
)

// Memory is short, and the host has swapped out a page that the dynamic linker has changed: it is not resident any more,
// and no page of the file all the same. Given back, it would come again with zeros for pointers.
func TestAttackSwappedPagesAreNotGivenBack(t *testing.T) {
	const smaps = `00400000-00402000 r--p 00000000 08:01 1 /usr/bin/ward
Anonymous:             0 kB
Swap:                  0 kB
00402000-00404000 r--p 00002000 08:01 1 /usr/bin/ward
Anonymous:             0 kB
Swap:                  4 kB
SwapPss:               4 kB
00404000-00406000 r-xp 00004000 08:01 1 /usr/bin/ward
Anonymous:             0 kB
Swap:                  0 kB
`
	got := pristine(strings.NewReader(smaps), "/usr/bin/ward")
	if len(got) != 2 || got[0].start != 0x400000 || got[1].start != 0x404000 {
		t.Errorf("%x", got)
	}
}
