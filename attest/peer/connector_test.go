package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// message is a datagram of the proc connector as Linux 6.18 sends it.
func message(what uint32, data ...uint32) []byte {
	h := binary.NativeEndian
	p := make([]byte, 40)
	h.PutUint32(p, what)
	for i, d := range data {
		h.PutUint32(p[16+4*i:], d)
	}
	b := make([]byte, unix.SizeofNlMsghdr+cnMsgSize, 76)
	h.PutUint32(b, 76)
	h.PutUint16(b[4:], unix.NLMSG_DONE)
	m := b[unix.SizeofNlMsghdr:]
	h.PutUint32(m, cnIdxProc)
	h.PutUint32(m[4:], cnValProc)
	h.PutUint32(m[12:], 77)
	h.PutUint16(m[16:], uint16(len(p)))
	return append(b, p...)
}

func TestParseEvent(t *testing.T) {
	for name, c := range map[string]struct {
		message []byte
		want    event
	}{
		"exec of a thread":  {message(procExec, 12, 11), event{what: procExec, tgid: 11}},
		"change of user":    {message(procUID, 12, 11, 1, 1), event{what: procUID, tgid: 11}},
		"change of group":   {message(procGID, 12, 11, 1, 1), event{what: procGID, tgid: 11}},
		"acknowledgement":   {message(procNone), event{what: procNone, ack: 77}},
		"refusal":           {message(procNone, 1), event{what: procNone, ack: 77, errno: 1}},
		"fork, not used":    {message(1, 1, 1, 2, 2), event{what: 1}},
		"unknown, not used": {message(0x1000, 0, 0), event{what: 0x1000}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseEvent(c.message); err != nil || got != c.want {
				t.Errorf("%+v %v; want %+v", got, err, c.want)
			}
		})
	}
	bend := func(f func([]byte) []byte) []byte { return f(message(procExec, 12, 11)) }
	put := func(at int, v byte) func([]byte) []byte { return func(b []byte) []byte { b[at] = v; return b } }
	for name, bad := range map[string][]byte{
		"nothing":               nil,
		"a header alone":        message(procExec)[:16],
		"cut short":             message(procExec, 12, 11)[:75],
		"something after it":    append(message(procExec, 12, 11), 0),
		"another type":          bend(put(4, 2)),
		"another connector":     bend(put(16, 2)),
		"another value":         bend(put(20, 2)),
		"a length that lies":    bend(put(32, 39)),
		"too long":              bytes.Repeat([]byte{0}, 300),
		"no process":            message(procExec, 12, 0),
		"a pid that is none":    message(procExec, 12, 1<<22+1),
		"an error that is none": message(procNone, 4096),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseEvent(bad); !errors.Is(err, errEvent) {
				t.Errorf("taken for %+v", got)
			}
		})
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(message(procExec, 12, 11))
	f.Add(message(procNone, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEvent(b)
		if err != nil && e != (event{}) {
			t.Errorf("%+v with %v", e, err)
		}
		if err == nil && (e.tgid < 0 || e.tgid > 1<<22 || (e.what == procExec) != (e.what == procExec && e.tgid > 0)) {
			t.Errorf("%+v", e)
		}
	})
}

// How often all are checked: never for more than its share of a processor.
func TestSweepInterval(t *testing.T) {
	for _, c := range []struct {
		name    string
		option  time.Duration
		events  bool
		cost    time.Duration
		between time.Duration
	}{
		{"the kernel tells", 0, true, 0, time.Second},
		{"it does not", 0, false, 0, 50 * time.Millisecond},
		{"it does not, with a few", 0, false, 200 * time.Microsecond, 50 * time.Millisecond},
		{"it does not, with many", 0, false, 5 * time.Millisecond, 250 * time.Millisecond},
		{"it does not, with too many", 0, false, 80 * time.Millisecond, time.Second},
		{"as told", 5 * time.Millisecond, true, time.Millisecond, 5 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := execs{pinner: &Pinner{options: Options{Sweep: c.option}}, events: c.events, cost: c.cost}
			if got := e.interval(); got != c.between {
				t.Errorf("%v; want %v", got, c.between)
			}
		})
	}
}

// Lost events have everything checked at once, but not again and again.
func TestSweepAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Pinner{held: map[uint64]*Process{1: {err: ErrClosed}}}
		e := &p.execs
		e.pinner, e.events = p, true
		e.timer = time.AfterFunc(time.Hour, e.sweep)
		defer e.timer.Stop()
		begin := time.Now()
		swept := func(n uint64, after time.Duration) {
			t.Helper()
			time.Sleep(after - time.Since(begin)) // the bubble's clock
			synctest.Wait()
			if got := p.Status().Sweeps; got != n {
				t.Fatalf("%d sweeps after %v; want %d", got, after, n)
			}
		}
		e.soon()
		swept(1, time.Microsecond)
		for range 1000 {
			e.soon()
		}
		swept(1, 9*time.Millisecond)
		swept(2, 11*time.Millisecond)
		swept(3, 1100*time.Millisecond) // and then once a second as before
	})
}

// Events that come faster than they are read are lost, which is told, and those after them are not.
func TestLostEvents(t *testing.T) {
	c, err := openConnector()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.subscribe(answerPatience); err != nil {
		t.Skipf("SKIPPED: needs the events of the proc connector (Linux 6.6, the host's own namespaces): %v", err)
	}
	if err := c.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 0) // the least that there is
	}); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	run := func() int {
		cmd := exec.Command(path)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid
	}
	for range 30 {
		run()
	}
	for {
		if _, err := c.receive(); errors.Is(err, errLost) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for range 100 { // under this little memory one may be lost again
		pid := run()
		if err := c.file.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			e, err := c.receive()
			if err == nil && e.what == procExec && e.tgid == pid {
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil && !errors.Is(err, errLost) {
				t.Fatal(err)
			}
		}
	}
	t.Fatal("no exec is told any more")
}

// Of events that were lost nobody knows whose they were: all count as changed, until the queue was empty once, and then
// each process alone does again.
func TestLostChanges(t *testing.T) {
	var c changes
	defer c.close()
	c.begin(Options{})
	<-c.begun
	if c.last(1) == 0 {
		t.Skip("SKIPPED: needs the events of the proc connector (Linux 6.6, the host's own namespaces)")
	}
	path, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	run := func() int {
		cmd := exec.Command(path)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid
	}
	own, alone := os.Getpid(), false
	for range 10 { // a busy machine may lose some
		before := c.last(own)
		if pid := run(); c.last(pid) <= before {
			t.Fatalf("%d has changed: %d; before it was %d", pid, c.last(pid), before)
		}
		alone = alone || c.last(own) == before
	}
	if !alone {
		t.Error("this process changes with every other")
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil { // the least that there is
		t.Fatal(err)
	}
	before := max(c.last(own), c.last(1))
	for range 30 {
		run()
	}
	if c.last(own) <= before || c.last(1) <= before {
		t.Errorf("%d and %d after a loss; before %d", c.last(own), c.last(1), before)
	}
}

// More processes than are told apart count as a change of all, so that who makes them takes no more memory.
func TestManyChanges(t *testing.T) {
	c := changes{count: 1, floor: 1, latest: map[int]uint64{}}
	for pid := range maxChanged {
		c.changed(10 + pid)
	}
	if c.floor != 1 || c.latest[10] != 2 {
		t.Fatalf("%d, %d", c.floor, c.latest[10])
	}
	c.changed(11) // it is known
	if c.floor != 1 {
		t.Fatal("one that is known is one too many")
	}
	c.changed(9)
	if len(c.latest) != 1 || c.floor <= uint64(maxChanged) || c.latest[9] <= c.floor {
		t.Errorf("%d processes, %d, %d", len(c.latest), c.floor, c.latest[9])
	}
}
