package peer

import (
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// changes tells for each process of the host when it has last replaced its program or changed its user, for who has no
// right to look into it. Nobody waits for the kernel's events, so that no program which the host starts wakes this
// process. They are read when somebody asks: the kernel puts the event of an execve into the socket's queue before it lets
// the new program run, so that whatever that program does comes after it. What the queue did not hold, or what does not
// fit in here, counts as a change of every process.
type changes struct {
	once  sync.Once
	begun chan struct{} // closed when begin's work is over; nil before begin

	mu      sync.Mutex
	asking  *connector // while the kernel is asked for its events
	closed  bool
	fd      int // of the socket; valid once told
	told    bool
	lost    bool           // some events are missing, among those until the queue is empty
	count   uint64         // of all changes
	floor   uint64         // the change of every process that is not in latest
	latest  map[int]uint64 // by pid
	scratch [512]byte
}

const (
	// So many processes' changes are told apart.
	maxChanged = 4096
	// So many events are read for one question. Who makes more of them than can be read keeps everybody from being
	// known, and nobody waiting.
	maxUnread = 1 << 14
)

// begin asks the kernel for its events. Until it has answered no process's changes are known.
func (c *changes) begin(o Options) {
	c.once.Do(func() {
		c.begun = make(chan struct{})
		if o.Without.ExecEvents {
			close(c.begun)
			return
		}
		asking, err := openConnector()
		if err != nil {
			close(c.begun)
			return
		}
		c.mu.Lock()
		c.asking = asking
		c.mu.Unlock()
		go func() {
			defer close(c.begun)
			err := asking.subscribe(answerPatience)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.asking = nil
			if err != nil || c.closed {
				asking.close()
				return
			}
			if c.fd, err = asking.unread(); err == nil {
				c.told, c.count, c.floor, c.latest = true, 1, 1, map[int]uint64{}
			}
		}()
	})
}

func (c *changes) close() {
	c.once.Do(func() {}) // never to begin
	c.mu.Lock()
	c.closed = true
	if c.asking != nil {
		c.asking.close()
	}
	c.end()
	c.mu.Unlock()
	if c.begun != nil {
		<-c.begun
	}
}

// end lets go of the socket. The caller holds mu.
func (c *changes) end() {
	if c.told {
		c.told = false
		unix.Close(c.fd)
	}
}

// last numbers the last change of the process with this pid, up to this moment; it is 0 when that is not known.
func (c *changes) last(pid int) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told || !c.read() {
		return 0
	}
	return max(c.floor, c.latest[pid])
}

// read takes in what the kernel has told. It reports whether that was all.
func (c *changes) read() bool {
	for range maxUnread {
		event, err := nextEvent(c.fd, c.scratch[:])
		switch {
		case err == nil:
			if event.tgid != 0 {
				c.changed(event.tgid)
			}
		case errors.Is(err, unix.EAGAIN):
			// Only now: the kernel says but once that it has lost events, and drops more of them until the queue is empty.
			if c.lost {
				c.lost = false
				c.all()
			}
			return true
		case errors.Is(err, errLost), errors.Is(err, errEvent):
			c.lost = true
		default:
			c.end()
			return false
		}
	}
	return false
}

// changed notes the change of a process.
func (c *changes) changed(pid int) {
	if _, known := c.latest[pid]; !known && len(c.latest) >= maxChanged {
		c.all()
	}
	c.count++
	c.latest[pid] = c.count
}

// all notes a change of every process.
func (c *changes) all() {
	c.count++
	c.floor = c.count
	clear(c.latest)
}

// packed is groups as a value that can be compared.
func packed(groups []uint32) string {
	var room [64]byte
	b := room[:0]
	for _, g := range groups {
		b = binary.NativeEndian.AppendUint32(b, g)
	}
	return string(b)
}
