package daemon

import (
	"bufio"
	"context"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is how long nobody may have called before a process counts as idle.
const quiet = 30 * time.Second

// regrown is how many bytes of its executable an idle process may touch anew before they are given back: the kernel maps
// many pages around each one, and the little that goes on, such as asking whether the peer is still there, brings most
// of them back. look is how often that is looked at.
const (
	regrown = 4 << 20
	look    = 5 * time.Second
)

// rest settles down after the start, and again whenever calls have come and gone.
func (d *Daemon) rest(ctx context.Context) error {
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	var seen, settled int64 = 0, -1
	var since time.Time
	var mapped int64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		trail := d.desk.trail()
		if trail == nil { // another process has taken this one's place, and this one ends soon
			return nil
		}
		now := trail.Status().First.Records
		if now != seen {
			seen, since = now, time.Now()
		}
		switch idle := settled < 0 || time.Since(since) >= quiet; {
		case idle && now != settled:
			debug.FreeOSMemory()
			fallthrough
		case idle && fileBacked() > mapped+regrown:
			giveBack()
			settled, mapped = now, fileBacked()
		}
		timer.Reset(look)
	}
}

// fileBacked is how many bytes of files are mapped and resident (proc_pid_statm(5)); 0 when it cannot be told.
func fileBacked() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 3 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// giveBack gives the host back what only starting needed: the pages of the executable that the start has touched and
// that serving does not. They are clean and come back from the file when they are used. A host that runs every role
// holds them once less for each.
func giveBack() {
	file, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer maps.Close()
	for _, m := range pristine(maps, file) {
		// Without the first two the kernel maps many pages around each one that is touched: of an executable that has
		// just been installed, and lies in the page cache in large pieces, 2 MiB. What fails changes nothing.
		for _, advice := range []uintptr{unix.MADV_NOHUGEPAGE, unix.MADV_RANDOM, unix.MADV_DONTNEED} {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, advice)
		}
	}
}

type mapping struct{ start, end uintptr }

// pristine are the mappings of file, among those of smaps (proc_pid_smaps(5)), in which every page is as it is in the
// file. That a mapping cannot be written says little: what the dynamic linker or a debugger has changed is dropped by
// MADV_DONTNEED, too, and what comes back from the file has zeros for pointers.
func pristine(smaps io.Reader, file string) (out []mapping) {
	var m mapping
	wanted := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if value, ok := strings.CutSuffix(fields[0], ":"); ok {
			switch {
			case wanted && value == "Anonymous" && fields[1] == "0":
				out = append(out, m)
			case value == "Swap" && fields[1] != "0" && len(out) > 0 && out[len(out)-1] == m: // changed pages, elsewhere now
				out = out[:len(out)-1]
			}
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		m = mapping{uintptr(start), uintptr(end)}
		wanted = err == nil && err2 == nil && start < end && !strings.Contains(fields[1], "w") && len(fields) > 5 && fields[5] == file
	}
	return out
}
