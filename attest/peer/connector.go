package peer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connector listens to the kernel's proc connector (linux/cn_proc.h): it tells of every execve and every change of
// user on the host, at once. Anybody may listen from Linux 6.6 on, in the initial pid, user and network namespaces;
// before, and for those in others, the kernel does not answer.
type connector struct {
	file *os.File
	raw  syscall.RawConn
	buf  [512]byte
}

// Of linux/connector.h and linux/cn_proc.h.
const (
	cnIdxProc = 1
	cnValProc = 1
	cnMsgSize = 20 // struct cn_msg

	procListen = 1 // PROC_CN_MCAST_LISTEN

	procNone = 0x0 // acknowledges a request
	procExec = 0x2
	procUID  = 0x4
	procGID  = 0x40
	// procAll is all that there is; only who asks for all hears its acknowledgement.
	procAll = 0xe00003c7

	// what, cpu, timestamp_ns, and at least two words of process ids or one of an acknowledgement.
	minEventSize = 24
	maxEventSize = 128 // 40 today
)

// event is one message of the proc connector. Of an acknowledgement there is ack and errno, of others tgid.
type event struct {
	what  uint32
	ack   uint32
	errno uint32
	tgid  int
}

var (
	errEvent  = errors.New("the message is not as linux/cn_proc.h says")
	errSilent = errors.New("the kernel does not answer: it is older than 6.6, or this process is not in the host's own namespaces")
	errLost   = errors.New("events of the kernel were lost")
)

func openConnector() (*connector, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, fmt.Errorf("open NETLINK_CONNECTOR: %w", err)
	}
	// As much as may be: an exec is a few hundred bytes of it, and they come in bursts.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	c := &connector{file: os.NewFile(uintptr(fd), "connector")}
	if c.raw, err = c.file.SyscallConn(); err != nil {
		_ = c.file.Close()
		return nil, err
	}
	return c, nil
}

// subscribe returns nil once the kernel has said that it tells of execs and changes of user.
func (c *connector) subscribe(patience time.Duration) error {
	var inner error
	err := c.raw.Control(func(fd uintptr) {
		inner = unix.Bind(int(fd), &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (cnIdxProc - 1)})
	})
	if err = errors.Join(err, inner); err != nil {
		return fmt.Errorf("bind NETLINK_CONNECTOR: %w", err)
	}
	// Whoever shares the network namespace hears the answers to others too, even when it gets none itself.
	var random [4]byte
	_, _ = rand.Read(random[:])
	question := binary.NativeEndian.Uint32(random[:])
	if err := c.listen(procAll, question); err != nil {
		return err
	}
	if err := c.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for {
		e, err := c.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errSilent
		case errors.Is(err, errLost), errors.Is(err, errEvent):
			continue
		case err != nil:
			return err
		}
		if e.what != procNone || e.ack != question+1 {
			continue
		}
		if e.errno != 0 {
			return fmt.Errorf("the kernel refuses its events: %w", unix.Errno(e.errno))
		}
		break
	}
	if err := c.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return c.listen(procExec|procUID|procGID, question)
}

// listen asks for the events of mask. The acknowledgement tells the number of the question, plus one, as its ack; its
// seq only counts messages.
func (c *connector) listen(mask, question uint32) error {
	const bodySize = 8 // struct proc_input
	var b [unix.SizeofNlMsghdr + cnMsgSize + bodySize]byte
	h := binary.NativeEndian
	h.PutUint32(b[0:], uint32(len(b)))
	h.PutUint16(b[4:], unix.NLMSG_DONE)
	m := b[unix.SizeofNlMsghdr:]
	h.PutUint32(m[0:], cnIdxProc)
	h.PutUint32(m[4:], cnValProc)
	h.PutUint32(m[12:], question)
	h.PutUint16(m[16:], bodySize)
	h.PutUint32(m[20:], procListen)
	h.PutUint32(m[24:], mask)
	var inner error
	err := c.raw.Control(func(fd uintptr) {
		inner = unix.Sendto(int(fd), b[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err = errors.Join(err, inner); err != nil {
		return fmt.Errorf("ask the proc connector: %w", err)
	}
	return nil
}

// receive waits for the next event of the kernel. errLost: some did not fit; errEvent: one cannot be understood.
func (c *connector) receive() (e event, err error) {
	var inner error
	err = c.raw.Read(func(fd uintptr) bool {
		e, inner = nextEvent(int(fd), c.buf[:])
		return !errors.Is(inner, unix.EAGAIN)
	})
	if err != nil {
		return event{}, err
	}
	return e, inner
}

// nextEvent takes the next event of the kernel from a connector's socket. It does not wait: EAGAIN says that there is none.
// An error is otherwise as receive's.
func nextEvent(fd int, buf []byte) (event, error) {
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return event{}, errLost
		case err != nil:
			return event{}, os.NewSyscallError("recvfrom", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // anybody may send to this socket; only the kernel is believed
		}
		if n > len(buf) {
			return event{}, errEvent
		}
		return parseEvent(buf[:n])
	}
}

// unread gives the connector's socket away as a descriptor that nobody waits for, and closes the connector.
func (c *connector) unread() (fd int, err error) {
	fd = -1
	var inner error
	err = c.raw.Control(func(own uintptr) { fd, inner = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) })
	c.close()
	if inner != nil {
		return -1, os.NewSyscallError("fcntl", inner)
	}
	return fd, err
}

func (c *connector) close() { _ = c.file.Close() }

// parseEvent parses one datagram: a struct nlmsghdr, a struct cn_msg and a struct proc_event, and nothing more.
func parseEvent(b []byte) (event, error) {
	h := binary.NativeEndian
	const head = unix.SizeofNlMsghdr + cnMsgSize
	if len(b) < head+minEventSize || len(b) > head+maxEventSize || h.Uint32(b) != uint32(len(b)) || h.Uint16(b[4:]) != unix.NLMSG_DONE {
		return event{}, errEvent
	}
	m, p := b[unix.SizeofNlMsghdr:head], b[head:]
	if h.Uint32(m) != cnIdxProc || h.Uint32(m[4:]) != cnValProc || int(h.Uint16(m[16:])) != len(p) {
		return event{}, errEvent
	}
	e := event{what: h.Uint32(p)}
	switch e.what {
	case procNone:
		e.ack = h.Uint32(m[12:])
		if e.errno = h.Uint32(p[16:]); e.errno >= 4096 {
			return event{}, errEvent
		}
	case procExec, procUID, procGID: // process_pid, process_tgid
		tgid := h.Uint32(p[20:])
		if tgid == 0 || tgid > 1<<22 { // PID_MAX_LIMIT
			return event{}, errEvent
		}
		e.tgid = int(tgid)
	}
	return e, nil
}
