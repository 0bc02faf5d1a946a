package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// joined gives both ends of a connection.
func joined(t testing.TB) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return ends[0], ends[1]
}

// framed is a text with its length before it.
func framed(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...) //nolint:gosec // a test's
}

// What is said arrives as it was said, a descriptor with a socket's message and with no other.
func TestMessagesArrive(t *testing.T) {
	a, b := joined(t)
	near, far := &Conn{UnixConn: a}, &Conn{UnixConn: b}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	hello := Message{Kind: KindHello, Protocol: Protocol, Role: "ingress", Version: "1.0.0", Trails: []string{"/a", ""}}
	socket := Message{Kind: KindSocket, Address: "127.0.0.1:8443", Own: true}
	for _, err := range []error{near.Send(hello, nil), near.Send(socket, w), w.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if m, f, err := far.Receive(); err != nil || f != nil || text(t, m) != text(t, hello) {
		t.Errorf("%+v, %v, %v", m, f, err)
	}
	m, f, err := far.Receive()
	if err != nil || f == nil || text(t, m) != text(t, socket) {
		t.Fatalf("%+v, %v, %v", m, f, err)
	}
	if _, err := io.WriteString(f, "x"); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "x" {
		t.Errorf("through the descriptor came %q, %v", got, err)
	}
	near.Refuse(errors.New("not you"))
	var refused *RefusedError
	if _, _, err := far.Receive(); !errors.As(err, &refused) || refused.Why != "not you" {
		t.Errorf("%v", err)
	}
	_ = near.Close()
	if _, _, err := far.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
}

func text(t testing.TB, m Message) string {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What is no message is none, and takes nothing along.
func TestNoMessages(t *testing.T) {
	for name, c := range map[string]struct {
		sent string
		want string
	}{
		"half a length":      {"\x00\x00", "EOF"},
		"half a message":     {string(framed(`{"kind":"take"}`)[:9]), "EOF"},
		"too long":           {"\x00\x01\x00\x01", "a message of 65537 bytes"},
		"far too long":       {"\xff\xff\xff\xff", "a message of 4294967295 bytes"},
		"no JSON":            {string(framed("take")), "not a message"},
		"of nothing":         {string(framed("")), "not a message"},
		"a list":             {string(framed("[]")), "not a message"},
		"two in one":         {string(framed(`{"kind":"take"}{"kind":"go"}`)), "not a message"},
		"without its socket": {string(framed(`{"kind":"socket"}`)), "with a descriptor: false"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := joined(t)
			if _, err := io.WriteString(near, c.sent); err != nil {
				t.Fatal(err)
			}
			_ = near.Close()
			if m, f, err := (&Conn{UnixConn: far}).Receive(); err == nil || f != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v, %v", m, f, err)
			}
		})
	}
	if err := (&Conn{}).Send(Message{Why: strings.Repeat("x", mostMessage)}, nil); err == nil {
		t.Error("too long a message was sent")
	}
}

// Whatever comes, in whatever pieces and with whichever descriptors: a message has one exactly when it is a socket's, can
// be said again as it was heard, and every descriptor that is not given out is closed.
func FuzzReceive(f *testing.F) {
	take, socket := framed(`{"kind":"take"}`), framed(`{"kind":"socket","address":"unix:/run/ward/x.sock","own":true}`)
	f.Add(take, []byte{})
	f.Add(socket, []byte{0x59})
	f.Add(append(append([]byte{}, socket...), socket...), []byte{0xfa, 0x09, 0xf8})
	f.Add(append(append([]byte{}, take...), socket...), []byte{0x20, 0x31, 0x39, 0x0d})
	f.Add(framed(`{"kind":"refused","why":"not you"}`), []byte{0x0a})
	f.Add([]byte("\x00\x01\x00\x00"), []byte{0x21})
	f.Add([]byte("\x00\x00"), []byte{0x09, 0x0f})
	f.Fuzz(func(t *testing.T, sent, pieces []byte) {
		if len(sent) > mostMessage || len(pieces) > 100 {
			t.Skip() // what lies in between would be full
		}
		near, far := joined(t)
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = read.Close() }()
		send(t, near, sent, pieces, int(write.Fd()))
		_ = near.Close()
		_ = write.Close()

		c := &Conn{UnixConn: far}
		for {
			m, file, err := c.Receive()
			if err != nil {
				if file != nil {
					t.Fatalf("an error, and a descriptor: %v", err)
				}
				break
			}
			if (file != nil) != (m.Kind == KindSocket) || m.Kind == KindRefused {
				t.Fatalf("%+v with %v", m, file)
			}
			again(t, m, file)
		}
		_ = far.Close()
		// Nobody has the pipe's end open any more.
		_ = read.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := read.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("a descriptor was left open: %v", err)
		}
	})
}

// send writes what is sent in pieces, each with so many descriptors: a byte says how long a piece is, and how many.
func send(t *testing.T, c *net.UnixConn, sent, pieces []byte, fd int) {
	t.Helper()
	for _, p := range pieces {
		var rights []byte
		if n := int(p & 7); n > 0 {
			fds := make([]int, n)
			for i := range fds {
				fds[i] = fd
			}
			rights = unix.UnixRights(fds...)
		}
		n := min(1+int(p>>3), len(sent))
		if n == 0 {
			return
		}
		if _, _, err := c.WriteMsgUnix(sent[:n], rights, nil); err != nil {
			t.Fatal(err)
		}
		sent = sent[n:]
	}
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
}

// again says what was heard, and closes file.
func again(t *testing.T, m Message, file *os.File) {
	t.Helper()
	a, b := joined(t)
	defer func() { _, _, _ = a.Close(), b.Close(), file.Close() }()
	if err := (&Conn{UnixConn: a}).Send(m, file); err != nil {
		if len(text(t, m)) <= mostMessage { // escaping can make it longer
			t.Fatal(err)
		}
		return
	}
	heard, second, err := (&Conn{UnixConn: b}).Receive()
	if err != nil || (second != nil) != (file != nil) || text(t, heard) != text(t, m) {
		t.Fatalf("%+v became %+v, %v, %v", m, heard, second, err)
	}
	_ = second.Close()
}
