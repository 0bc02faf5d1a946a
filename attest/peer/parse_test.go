package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const statLine = "7 (%s) S 1 7 7 0 -1 4194304 85 0 0 0 0 0 0 0 20 0 1 0 1234 3133440 410 18446744073709551615 " +
	"94 95 140 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 96 97 98 141 142 143 144 0\n"

func TestParseStat(t *testing.T) {
	want := stat{state: 'S', memory: 3133440, layout: layout{
		started: 1234, startCode: 94, endCode: 95, startStack: 140, startData: 96, endData: 97, startHeap: 98}}
	for _, name := range []string{"sleep", "", ")", "a) R 1 (b", "x\n7 (y) Z 0 0", "(((", "tmux: server"} {
		got, err := parseStat(fmt.Appendf(nil, statLine, name))
		if err != nil || got != want {
			t.Errorf("named %q: %+v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "7 sleep S 1", "7 (sleep) S 1 2 3\n", "7 (sleep) SS" + statLine[8:], "7 (sleep) \x00" + statLine[8:], fmt.Sprintf(statLine, "x")[:60]} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %+v", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add(fmt.Appendf(nil, statLine, "a) R 1 (b"))
	if own, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(own)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		s, err := parseStat(line)
		if err == nil && !letter(s.state) {
			t.Errorf("no state in %q", line)
		}
	})
}

func TestDecimal(t *testing.T) {
	for word, want := range map[string]uint64{"0": 0, "18446744073709551615": math.MaxUint64, "0042": 42} {
		if got, ok := decimal([]byte(word)); !ok || got != want {
			t.Errorf("%s is %d, %v", word, got, ok)
		}
	}
	for _, word := range []string{"", "-1", "+1", "1a", "18446744073709551616", "99999999999999999999", "000000000000000000000"} {
		if got, ok := decimal([]byte(word)); ok {
			t.Errorf("%q is taken for %d", word, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	file := "Name:\tx\\nUid:\\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t9 10 \n"
	got, err := parseStatus([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(status{uid: 2, gid: 6, groups: []uint32{9, 10}}, got, cmp.AllowUnexported(status{})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{
		"", "Uid:\t1\t2\t3\t4\n", "Uid:\t1\t2\t3\nGid:\t5\t6\t7\t8\nGroups:\t\n", "Uid:\t1\t-2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n",
		"Uid:\t1\t4294967296\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n", "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n",
	} {
		if got, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %+v", bad, got)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	if own, err := os.ReadFile("/proc/self/status"); err == nil {
		f.Add(own)
	}
	f.Fuzz(func(t *testing.T, file []byte) { _, _ = parseStatus(file) })
}

func TestMapsAll(t *testing.T) {
	for idMap, want := range map[string]bool{
		"         0          0 4294967295\n":                             true,
		"         0          0          1\n":                             false,
		"         0       1000          1\n":                             false,
		"         0     100000 4294967295\n":                             false,
		"         0          0 1000\n      1000       1000 4294966295\n": false,
		"": false,
	} {
		if got, err := mapsAll([]byte(idMap)); err != nil || got != want {
			t.Errorf("%q: %v, %v", idMap, got, err)
		}
	}
}

func TestUsersKnown(t *testing.T) {
	initial := users{overflowUID: 65534, overflowGID: 65534}
	if err := initial.known(65534, 65534); err != nil {
		t.Errorf("where everybody is mapped, nobody is a user like others: %v", err)
	}
	inner := users{overflowUID: 65534, overflowGID: 65533, ambiguousUID: true, ambiguousGID: true}
	if inner.known(0, 0) != nil || inner.known(65534, 0) == nil || inner.known(0, 65533) == nil {
		t.Error("the overflow ids are ambiguous, and they alone")
	}
}

// diagReply builds a reply as the kernel does.
func diagReply(seq uint32, change func(message []byte), attributes ...byte) []byte {
	h := binary.NativeEndian
	b := make([]byte, unix.SizeofNlMsghdr+diagMessageSize, 256)
	m := b[unix.SizeofNlMsghdr:]
	m[0], m[1] = unix.AF_INET, tcpEstablished
	binary.BigEndian.PutUint16(m[4:], 40000)
	binary.BigEndian.PutUint16(m[6:], 80)
	copy(m[8:], []byte{127, 0, 0, 1})
	copy(m[24:], []byte{127, 0, 0, 2})
	h.PutUint32(m[44:], 0x11223344)
	h.PutUint32(m[48:], 0x55667788)
	h.PutUint32(m[64:], 1000)
	h.PutUint32(m[68:], 4711)
	if change != nil {
		change(m)
	}
	b = append(b, attributes...)
	h.PutUint32(b, uint32(len(b)))
	h.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	h.PutUint32(b[8:], seq)
	return b
}

func cgroupAttribute(id uint64) []byte {
	b := []byte{5, 0, 8, 0, 1, 0, 0, 0} // another attribute first, padded
	b = binary.NativeEndian.AppendUint16(b, 12)
	b = binary.NativeEndian.AppendUint16(b, inetDiagCgroup)
	return binary.NativeEndian.AppendUint64(b, id)
}

func TestParseDiag(t *testing.T) {
	got, ours, err := parseDiag(diagReply(7, nil, cgroupAttribute(99)...), 7)
	if err != nil || !ours {
		t.Fatal(ours, err)
	}
	want := tcpSocket{local: netip.MustParseAddrPort("127.0.0.1:40000"), remote: netip.MustParseAddrPort("127.0.0.2:80"),
		state: tcpEstablished, cookie: 0x5566778811223344, uid: 1000, inode: 4711, cgroup: 99}
	if got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	mapped := diagReply(7, func(m []byte) {
		m[0] = unix.AF_INET6
		copy(m[8:24], netip.MustParseAddr("::ffff:127.0.0.1").AsSlice())
		copy(m[24:40], netip.MustParseAddr("::ffff:127.0.0.2").AsSlice())
	})
	if got, _, err := parseDiag(mapped, 7); err != nil || got.local != want.local || got.remote != want.remote || got.cgroup != 0 {
		t.Errorf("IPv4 in IPv6: %+v, %v", got, err)
	}
	if _, ours, _ := parseDiag(diagReply(6, nil), 7); ours {
		t.Error("the reply to another request is taken")
	}
	absent := make([]byte, unix.SizeofNlMsghdr+4)
	binary.NativeEndian.PutUint32(absent, uint32(len(absent)))
	binary.NativeEndian.PutUint16(absent[4:], unix.NLMSG_ERROR)
	errno := -int32(unix.ENOENT)
	binary.NativeEndian.PutUint32(absent[unix.SizeofNlMsghdr:], uint32(errno))
	if _, ours, err := parseDiag(absent, 0); !ours || !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such socket: %v", err)
	}
	whole := diagReply(7, nil, cgroupAttribute(99)...)
	for name, bad := range map[string][]byte{
		"empty":                     nil,
		"cut in the header":         whole[:10],
		"cut in the message":        whole[:60],
		"cut in the attributes":     whole[:len(whole)-1],
		"another family":            diagReply(7, func(m []byte) { m[0] = unix.AF_UNIX }),
		"an attribute of no length": diagReply(7, nil, 0, 0, 21, 0),
		"a short cgroup id":         diagReply(7, nil, 8, 0, 21, 0, 1, 0, 0, 0),
	} {
		if s, _, err := parseDiag(bad, 7); err == nil {
			t.Errorf("%s is taken for %+v", name, s)
		}
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(diagReply(7, nil, cgroupAttribute(99)...))
	f.Add(diagReply(7, func(m []byte) { m[0] = unix.AF_INET6 }))
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ours, err := parseDiag(b, 7)
		if ours && err == nil && (s.local.Addr().Is4In6() || !s.local.IsValid()) {
			t.Errorf("address %v", s.local)
		}
	})
}

// The kernel itself, about a connection of this process: what it says of both ends, and of one that is gone.
func TestDiag(t *testing.T) {
	d, err := openDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	local, remote := tcpAddr(client.LocalAddr()), tcpAddr(client.RemoteAddr())
	s, err := d.socket(local, remote)
	if err != nil {
		t.Fatal(err)
	}
	if s.state != tcpEstablished || s.inode == 0 || int(s.uid) != os.Geteuid() {
		t.Errorf("%+v", s)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client.Close() // its socket is an orphan now
	if s, err = d.socket(local, remote); err != nil {
		t.Fatal(err)
	}
	if s.state == tcpEstablished || s.inode != 0 {
		t.Errorf("an orphan is reported as %+v; TCP's refusals rest on its state and on there being no inode", s)
	}
	server.Close()
	if _, err := d.socket(netip.MustParseAddrPort("127.0.0.1:1"), remote); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such socket: %v", err)
	}
	if _, err := d.socket(netip.MustParseAddrPort("[::1]:1"), remote); err == nil {
		t.Error("a connection between two families is asked about")
	}
}

func FuzzDirent(f *testing.F) {
	entry := append(make([]byte, 16), 24, 0, 10, '1', '7', 0, 0, 0)
	f.Add(append(bytes.Clone(entry), entry...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			name, rest, err := dirent(b)
			if err != nil {
				return
			}
			if len(name) < 2 || name[len(name)-1] != 0 || len(rest) >= len(b) {
				t.Fatalf("%q from %q", name, b)
			}
			b = rest
		}
	})
}

func FuzzSender(f *testing.F) {
	f.Add(unix.UnixCredentials(&unix.Ucred{Pid: 7, Uid: 1, Gid: 2}))
	f.Add(unix.UnixRights(3))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, oob []byte) {
		if pid, err := sender(oob); err != nil && (pid != 0 || !errors.Is(err, ErrPassed)) {
			t.Errorf("%d, %v", pid, err)
		}
	})
}

func TestSender(t *testing.T) {
	credentials := unix.UnixCredentials(&unix.Ucred{Pid: 7, Uid: 1, Gid: 2})
	if pid, err := sender(credentials); err != nil || pid != 7 {
		t.Errorf("%d, %v", pid, err)
	}
	for name, oob := range map[string][]byte{
		"nothing":               nil,
		"descriptors":           unix.UnixRights(0),
		"descriptors afterward": append(bytes.Clone(credentials), unix.UnixRights(0)...),
	} {
		if pid, err := sender(oob); err == nil {
			t.Errorf("%s: %d", name, pid)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Sweep: -1}, {Sweep: maxSweep + 1}, {PerUser: -1}} {
		if p, err := New(o); err == nil {
			p.Close()
			t.Errorf("%+v is taken", o)
		}
	}
}

// Whatever the limit on open files, one user's connections leave most of them to the others.
func TestPerUser(t *testing.T) {
	for files, want := range map[uint64]int{512: 64, 20_000: 1333, 524_288: 4096, math.MaxUint64: 4096} {
		if got := perUser(files); got != want {
			t.Errorf("with %d files a user may have %d connections, want %d", files, got, want)
		}
	}
}
