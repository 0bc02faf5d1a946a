package daemon

import (
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is given back is what the file can give again: nothing that may be written, and nothing that has been.
func TestOnlyPristinePagesAreGivenBack(t *testing.T) {
	const smaps = `00400000-0049f000 r-xp 00000000 fd:00 12 /usr/bin/ward
Size:                636 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
0049f000-004a0000 r--p 0009f000 fd:00 12 /usr/bin/ward
Anonymous:             4 kB
004a0000-004b0000 rw-p 000a0000 fd:00 12 /usr/bin/ward
Anonymous:             0 kB
004b0000-004c0000 r--p 000b0000 fd:00 12 /usr/bin/ward
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fd:00 13 /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000001000-7f0000002000 r--p 00000000 00:00 0
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0x49f000}, {0x4b0000, 0x4c0000}}
	if diff := cmp.Diff(want, pristine(strings.NewReader(smaps), "/usr/bin/ward"), cmp.AllowUnexported(mapping{})); diff != "" {
		t.Error(diff)
	}
}

// A program that has been linked dynamically, as this one is with the race detector, lives on.
func TestSettlingDownBreaksNothing(t *testing.T) {
	for range 3 {
		giveBack()
	}
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || len(b) == 0 {
		t.Error(err)
	}
}

// What a burst leaves behind is given back at the next pause, and under load only where it is far more than load needs.
func TestWhatIsSpareIsGivenBack(t *testing.T) {
	const mebi = 1 << 20
	for name, c := range map[string]struct {
		held, left  holding
		pause, load bool
	}{
		"next to nothing":                    {holding{4 * mebi, mebi}, holding{}, false, false},
		"an idle process's little":           {holding{4 * mebi, 2 * mebi}, holding{}, true, false},
		"the same in a large one":            {holding{400 * mebi, 40 * mebi}, holding{}, false, false},
		"what could not be given back":       {holding{20 * mebi, 12 * mebi}, holding{20 * mebi, 11 * mebi}, false, false},
		"as much as between two collections": {holding{40 * mebi, 60 * mebi}, holding{}, true, false},
		"much, and little is used":           {holding{4 * mebi, 60 * mebi}, holding{}, true, false},
		"what a burst has left":              {holding{40 * mebi, 600 * mebi}, holding{}, true, true},
	} {
		if got := c.held.excessive(c.left, true); got != c.pause {
			t.Errorf("%s: at a pause: %v", name, got)
		}
		if got := c.held.excessive(c.left, false); got != c.load {
			t.Errorf("%s: under load: %v", name, got)
		}
	}
}

// A process that has held much counts it as spare once it is dropped, and no more when it has been given back.
func TestDroppedMemoryIsSpare(t *testing.T) {
	const size, parts = 128 << 20, 128
	many := make([][]byte, parts)
	for i := range many {
		many[i] = make([]byte, size/parts)
	}
	runtime.GC()
	if h := holds(); h.used < size {
		t.Fatalf("%d bytes are used while %d are held", h.used, size)
	}
	runtime.KeepAlive(many)
	many = nil
	runtime.GC()
	before := holds()
	if before.spare < size/2 { // else it has been given back already
		t.Logf("the runtime itself has given back all but %d bytes", before.spare)
	}
	collect()
	if h := holds(); h.used > size/2 || h.spare > size/2 {
		t.Errorf("%d bytes are used and %d spare afterwards, of %d and %d before", h.used, h.spare, before.used, before.spare)
	}
}
