package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// quiet is how long nobody may have called before a process counts as idle.
const quiet = 30 * time.Second

// rest settles down after the start, and again whenever calls have come and gone.
func (d *Daemon) rest(ctx context.Context) error {
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	var seen, settled int64 = 0, -1
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		now := d.trail.Status().First.Records
		if now == seen && now != settled || settled < 0 {
			settleDown()
			settled = now
		}
		seen = now
		timer.Reset(quiet)
	}
}

// settleDown gives the host back what only starting needed: memory of garbage, and the pages of the executable that the
// start has touched and that serving does not. They are clean and come back from the file when they are used. A host
// that runs every role holds them once less for each.
func settleDown() {
	debug.FreeOSMemory()
	self, err := procfs.Self()
	if err != nil {
		return
	}
	file, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := self.ProcMaps()
	if err != nil {
		return
	}
	for _, m := range maps {
		if m.Pathname != file || m.Perms.Write {
			continue
		}
		// Without the first the kernel maps many pages around each one that is touched. What fails changes nothing.
		for _, advice := range []uintptr{unix.MADV_RANDOM, unix.MADV_DONTNEED} {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.StartAddr, m.EndAddr-m.StartAddr, advice)
		}
	}
}
