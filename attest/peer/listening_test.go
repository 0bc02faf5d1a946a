package peer

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The dump of who listens names every socket at the address, and none that only has the port.
func TestListeners(t *testing.T) {
	d, err := openDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := l.Addr().(*net.TCPAddr).AddrPort()
	found, err := d.listeners(address)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].local != address || int(found[0].uid) != os.Getuid() || found[0].inode == 0 {
		t.Fatalf("%+v", found)
	}
	elsewhere := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), address.Port())
	if found, err := d.listeners(elsewhere); err != nil || len(found) != 0 {
		t.Fatalf("%+v %v", found, err)
	}
	// After a dump the socket still answers single questions.
	c, err := net.Dial("tcp4", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := d.socket(tcpAddr(c.LocalAddr()), address); err != nil {
		t.Fatal(err)
	}
	// Nor is the one that listens taken for a connection that is not there.
	if _, err := d.socket(address, netip.MustParseAddrPort("127.0.0.1:1")); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("got %v", err)
	}
}

func TestListenersEverywhere(t *testing.T) {
	d, err := openDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	l, err := net.Listen("tcp", ":0") // IPv6 and IPv4 in one, where there is IPv6
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(l.Addr().(*net.TCPAddr).Port))
	if found, err := d.listeners(address); err != nil || len(found) != 1 {
		t.Fatalf("%+v %v", found, err)
	}
}

func TestParseDump(t *testing.T) {
	one := dumped(unix.SOCK_DIAG_BY_FAMILY, 0, make([]byte, diagMessageSize))
	one[unix.SizeofNlMsghdr] = unix.AF_INET
	done := dumped(unix.NLMSG_DONE, 0, make([]byte, 4))
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for name, c := range map[string]struct {
		datagram []byte
		sockets  int
		done     bool
	}{
		"two and the end": {join(one, one, done), 2, true},
		"two, and more":   {join(one, one), 2, false},
		"the end alone":   {done, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, end, ours, err := parseDump(c.datagram, 7)
			if err != nil || !ours || end != c.done || len(s) != c.sockets {
				t.Errorf("%d sockets, %v, %v, %v", len(s), end, ours, err)
			}
		})
	}
	if _, _, ours, _ := parseDump(one, 8); ours {
		t.Error("an answer to another request is taken for ours")
	}
	failed := dumped(unix.NLMSG_ERROR, 0, binary.NativeEndian.AppendUint32(nil, ^uint32(0))) // -1
	if _, _, _, err := parseDump(failed, 7); !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
	for name, bad := range map[string][]byte{
		"something after the end": join(done, one),
		"cut short":               one[:60],
		"half a header":           join(one, one[:8]),
		"interrupted":             dumped(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, make([]byte, 4)),
		"another type":            dumped(99, 0, make([]byte, 72)),
		"an end without a code":   dumped(unix.NLMSG_DONE, 0, nil),
		"an acknowledgement":      dumped(unix.NLMSG_ERROR, 0, make([]byte, 4)),
	} {
		t.Run(name, func(t *testing.T) {
			if s, _, _, err := parseDump(bad, 7); !errors.Is(err, errDiag) {
				t.Errorf("taken for %+v, %v", s, err)
			}
		})
	}
}

// dumped is one message in answer to request 7.
func dumped(kind, flags uint16, body []byte) []byte {
	h := binary.NativeEndian
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	h.PutUint32(b, uint32(unix.SizeofNlMsghdr+len(body)))
	h.PutUint16(b[4:], kind)
	h.PutUint16(b[6:], flags)
	h.PutUint32(b[8:], 7)
	return append(b, body...)
}

func FuzzParseDump(f *testing.F) {
	one := dumped(unix.SOCK_DIAG_BY_FAMILY, 0, make([]byte, diagMessageSize))
	one[unix.SizeofNlMsghdr] = unix.AF_INET
	f.Add(append(one, dumped(unix.NLMSG_DONE, 0, make([]byte, 4))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, ours, err := parseDump(b, 7)
		if (err != nil || !ours) && s != nil {
			t.Errorf("%+v with %v", s, err)
		}
	})
}
