package daemon

import (
	"io"
	"os"
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
