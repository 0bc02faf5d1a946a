// Package handover lets a new process of a role take the place of the one that runs, with its listening sockets, while
// calls go on: a new binary, or a config that a reload cannot take, without a call that fails.
//
// # Who starts the new one
//
// Not the one that runs. What parses the network's bytes is confined so that it can execute nothing (agent/sandbox), and
// what it started would inherit that confinement, the system call filter and the view of the file system that its unit
// had on the day when it began. So whoever starts Ward starts the new process as well, in the confinement that is written
// down today: under systemd that is ExecReload=, in the same unit and control group, as the same user. The new process
// asks the one that runs, over a Unix socket in the role's own folder of state, which its user alone can enter. HAProxy's
// new workers get their sockets from the old ones like this (expose-fd listeners), and Envoy's (hot restart).
//
// # Order
//
// The side that runs is the giver, the new one the taker. Each line is a message; the giver goes on serving up to `go`:
//
//	taker  hello     role, version, which trail it would keep
//	giver  socket    one for each listening socket, with its descriptor
//	giver  welcome   after the last one
//	       the taker loads its rules, gets its identities, and opens what is not open yet; it accepts nothing
//	taker  take      it is ready
//	giver  released  its trail is flushed, signed and closed, and its records wait
//	taker  open      it has opened the trail
//	giver  go        from now on its records travel over this connection (audit.Sender); the service manager is told
//	taker  serving   it accepts calls; the giver stops accepting, and ends the calls it has
//
// Until `go` either side may give up, for any reason and by closing the connection, and nothing has happened: the giver
// opens its trail again and serves on; the taker ends. Which of the two may write the trail is decided by the trail's own
// lock and not by what either believes: a giver cannot open it anew before a taker that hangs has been ended.
// After `go` the taker is the role. Should it end then, the giver's last calls end unrecorded, as in any crash: their
// intents have no outcome, and are presumed disclosed.
//
// # Against whom
//
// The kernel says who is at the other end: only the very user of the process is heard, root is not, because a taker of
// root's would serve as root. What travels are descriptors of sockets and, later, records. Whoever can run code as that
// user could open the trail and its key anyway; this door gives no more. A taker outside of the giver's control group is
// refused: the service manager would not take it for the unit's.
package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol is the version of what is said here. Both sides must speak the same.
const Protocol = 1

// Kind is what a message says.
type Kind string

// The messages, in the order in which they are said. Refused may stand in the place of any.
const (
	KindAsk      Kind = "ask" // only who is there
	KindHello    Kind = "hello"
	KindSocket   Kind = "socket"
	KindWelcome  Kind = "welcome"
	KindTake     Kind = "take"
	KindReleased Kind = "released"
	KindOpen     Kind = "open"
	KindGo       Kind = "go"
	KindServing  Kind = "serving"
	KindRefused  Kind = "refused"
)

// Message is one message. Which fields it has depends on its Kind.
type Message struct {
	Kind     Kind `json:"kind"`
	Protocol int  `json:"protocol,omitempty"` // ask, hello, welcome

	// Of ask, hello and welcome: who speaks.
	Role       string   `json:"role,omitempty"`
	Version    string   `json:"version,omitempty"`
	Executable string   `json:"executable,omitempty"` // the file, as Executable gives it
	Trails     []string `json:"trails,omitempty"`     // the folders of its audit logs
	Notify     string   `json:"notify,omitempty"`     // welcome: where the service manager listens

	// Of socket. Address is as config spells it; Own says that Ward has opened it, and removes it at its end.
	Address string `json:"address,omitempty"`
	Own     bool   `json:"own,omitempty"`

	Why string `json:"why,omitempty"` // refused
}

// RefusedError is what the other side says against a hand-over.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return e.Why }

// ErrNobody says that no process of the role runs that could hand over.
var ErrNobody = errors.New("no process that could hand over its sockets")

// mostMessage bounds a message, in bytes of JSON.
const mostMessage = 64 << 10

// Conn is a connection between a giver and a taker.
type Conn struct {
	*net.UnixConn
	PID int // of the process at the other end
}

// Send sends m, with f where it is not nil.
func (c *Conn) Send(m Message, f *os.File) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) > mostMessage {
		return fmt.Errorf("handover: a message of %d bytes", len(text))
	}
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...) //nolint:gosec // at most mostMessage
	var rights []byte
	if f != nil {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// The descriptor must stay open until it has been sent.
		var sent error
		if err := raw.Control(func(fd uintptr) { sent = c.write(b, unix.UnixRights(int(fd))) }); err != nil {
			return err
		}
		return sent
	}
	return c.write(b, rights)
}

// write sends all of b, the rights with its beginning.
func (c *Conn) write(b, rights []byte) error {
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// Receive gets the next message, and the file that came with it, or nil. One that says Refused is a *RefusedError.
func (c *Conn) Receive() (m Message, f *os.File, err error) {
	defer func() {
		if err != nil && f != nil {
			_ = f.Close()
			f = nil
		}
	}()
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(head, oob) // close-on-exec
	if err != nil {
		return m, nil, err
	}
	if f, err = received(oob[:oobn], flags); err != nil {
		return m, f, err
	}
	if n == 0 {
		return m, f, io.EOF
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return m, f, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > mostMessage {
		return m, f, fmt.Errorf("handover: a message of %d bytes", size)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(c, text); err != nil {
		return m, f, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, f, fmt.Errorf("handover: not a message: %w", err)
	}
	if m.Kind == KindRefused {
		return m, f, &RefusedError{m.Why}
	}
	if (f != nil) != (m.Kind == KindSocket) {
		return m, f, fmt.Errorf("handover: %q with a descriptor: %v", m.Kind, f != nil)
	}
	return m, f, nil
}

// Expect receives a message that must be of one kind.
func (c *Conn) Expect(kind Kind) (Message, error) {
	m, f, err := c.Receive()
	if f != nil {
		_ = f.Close()
	}
	if err == nil && m.Kind != kind {
		err = fmt.Errorf("handover: %q, where %q was to come", m.Kind, kind)
	}
	return m, err
}

// Refuse says why not. Whether it is heard makes no difference.
func (c *Conn) Refuse(why error) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_ = c.Send(Message{Kind: KindRefused, Why: why.Error()}, nil)
}

// received is the one descriptor in a control message, or nil. More than one is an error, and all are closed.
func received(oob []byte, flags int) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	var fds []int
	for _, m := range messages {
		if rights, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, rights...)
		}
	}
	if len(fds) > 1 || flags&unix.MSG_CTRUNC != 0 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, errors.New("handover: more than one descriptor in a message")
	}
	if len(fds) == 0 {
		return nil, nil
	}
	return os.NewFile(uintptr(fds[0]), "handed over"), nil
}

// Socket is where the process of a role that keeps its trail in that folder can be asked: beside it.
func Socket(trail string) string { return filepath.Join(filepath.Dir(trail), "upgrade.sock") }

// Executable names the file that this process runs, so that two processes can tell whether they run the same.
func Executable() string {
	var s unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &s); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// Listen opens the giver's socket, in the place of one that a process before this one has left.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Accept takes the next taker that may be heard. It waits for others to go away by themselves.
func Accept(l *net.UnixListener) (*Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		conn, err := judged(c)
		if err == nil {
			return conn, nil
		}
		(&Conn{UnixConn: c}).Refuse(err)
		_ = c.Close()
	}
}

// Dial connects to the giver.
func Dial(path string) (*Conn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	if err != nil {
		return nil, err
	}
	conn, err := judged(c)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return conn, nil
}

// judged is c, if the process at its other end may give or take.
func judged(c *net.UnixConn) (*Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) { peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if asked != nil {
		return nil, asked
	}
	if int(peer.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("process %d of uid %d and this one of uid %d cannot take one another's place", peer.Pid, peer.Uid, os.Geteuid())
	}
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", peer.Pid))
	if err == nil {
		if ours, err := os.ReadFile("/proc/self/cgroup"); err == nil && string(ours) != string(theirs) {
			return nil, fmt.Errorf("process %d is not of the same unit; where systemd runs Ward, let it start the new process: systemctl reload UNIT", peer.Pid)
		}
	}
	return &Conn{UnixConn: c, PID: int(peer.Pid)}, nil
}
