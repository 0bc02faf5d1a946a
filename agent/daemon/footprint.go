package daemon

import (
	"bufio"
	"context"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is how long nobody may have called before a process counts as idle, and calm before it is taken to pause: longer
// than connections that have been used take to come to rest.
const (
	quiet = 30 * time.Second
	calm  = 2 * time.Second
)

// regrown is how many bytes of its executable an idle process may touch anew before they are given back: the kernel maps
// many pages around each one, and the little that goes on, such as asking whether the peer is still there, brings most
// of them back. glance is how often the memory is looked at, and look how often that and the trail's end.
const (
	regrown = 4 << 20
	glance  = time.Second
	look    = 5 * time.Second
)

// rest settles down after the start, and again whenever calls or connections have come and gone.
func (d *Daemon) rest(ctx context.Context) error {
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	var seen, settled int64 = 0, -1
	var since, looked, gave time.Time
	var mapped int64
	var left holding
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(glance)
		trail := d.desk.trail()
		if trail == nil { // another process has taken this one's place, and this one ends soon
			return nil
		}
		now := trail.Status().First.Records
		if now != seen {
			seen, since = now, time.Now()
		}
		paused := time.Since(since) >= calm
		idle := settled < 0 || time.Since(since) >= quiet
		held := holds()
		left.spare = min(left.spare, held.spare)
		if idle && now != settled || held.excessive(left, paused) && (paused || time.Since(gave) >= quiet) {
			collect()
			left, gave = holds(), time.Now()
		}
		switch {
		case idle && now != settled:
		case idle && time.Since(looked) >= look:
			looked = time.Now()
			if fileBacked() <= mapped+regrown {
				continue
			}
		default:
			continue
		}
		giveBack()
		settled, mapped = now, fileBacked()
	}
}

// holding is what the Go runtime has of the host's memory, in bytes.
type holding struct {
	used  uint64 // by what was alive at the last collection, and by stacks
	spare uint64 // by what has been made since, alive or not, and by nothing
}

// holds asks the runtime, which need not stop anybody for that.
func holds() holding {
	m := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(m)
	of := func(i int) uint64 {
		if m[i].Value.Kind() != metrics.KindUint64 { // a later Go does not know it
			return 0
		}
		return m[i].Value.Uint64()
	}
	live, objects := of(0), of(2)
	live = min(live, objects)
	return holding{used: live + of(1), spare: objects - live + of(3) + of(4)}
}

// least is what is not worth a collection.
const least = 2 << 20

// excessive reports whether so much is spare that it should be given back; left is what could not be the last time. While calls
// are made, what is spare is about to be used: Go collects when as much has been made as was alive, and what a process
// needs in the next second it need not ask the host for. Only what a burst has left behind is more than that.
func (h holding) excessive(left holding, paused bool) bool {
	gain := h.spare - left.spare
	if paused {
		return gain >= max(least, h.used/8)
	}
	return gain >= max(32*least, 3*h.used)
}

// collect collects what is not used, and gives it back to the host. What pools hold outlives one collection.
func collect() {
	runtime.GC()
	debug.FreeOSMemory()
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
