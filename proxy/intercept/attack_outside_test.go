package intercept_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy/intercept"
)

// neighbour is a network interface whose other end is this test: a container or a host beside this one.
func neighbour(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		t.Skip("SKIPPED: needs /dev/net/tun")
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(s) }()
	change := func(request uint, on int, set func(*unix.Ifreq)) {
		r, err := unix.NewIfreq("beside0")
		if err == nil {
			set(r)
			err = unix.IoctlIfreq(on, request, r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(unix.TUNSETIFF, fd, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI) })
	change(unix.SIOCSIFADDR, s, func(r *unix.Ifreq) { _ = r.SetInet4Addr([]byte{10, 9, 9, 1}) })
	change(unix.SIOCSIFNETMASK, s, func(r *unix.Ifreq) { _ = r.SetInet4Addr([]byte{255, 255, 255, 0}) })
	change(unix.SIOCSIFFLAGS, s, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING) })
	// As a container engine may set it.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/beside0/route_localnet", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "beside0") //nolint:gosec // a descriptor fits
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// knock sends the first packet of a connection from 10.9.9.2 and reports whether a server answers that it accepts.
func knock(t *testing.T, f *os.File, source uint16, to netip.AddrPort) bool {
	t.Helper()
	p := make([]byte, 40)
	p[0], p[3], p[8], p[9] = 0x45, 40, 64, unix.IPPROTO_TCP // RFC 791 §3.1
	copy(p[12:], []byte{10, 9, 9, 2})
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	tcp := p[20:] // RFC 9293 §3.1
	binary.BigEndian.PutUint16(tcp, source)
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	tcp[12], tcp[13], tcp[14] = 5<<4, 0x02, 0xff
	pseudo := append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	if _, err := f.Write(p); err != nil {
		t.Fatal(err)
	}
	_ = f.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	b := make([]byte, 2048)
	for {
		n, err := f.Read(b)
		if err != nil {
			return false
		}
		if n >= 40 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(b[22:]) == source && b[33]&0x12 == 0x12 {
			return true
		}
	}
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) //nolint:gosec // folded above
}

// A container or a neighbour on the network reaches a loopback address, where the host routes such. The guarded upstream
// must not answer: nobody there is Ward.
func TestAttackUpstreamFromOutside(t *testing.T) {
	needNamespace(t)
	upstream := netip.MustParseAddrPort("127.0.0.1:8080")
	listen(t, 0, "tcp", "0.0.0.0:8080", "fhir")
	f := neighbour(t)
	if !knock(t, f, 40001, upstream) {
		t.Fatal("the attack did not come about: the upstream does not answer even without rules")
	}
	apply(t, intercept.Rules{Guarded: []netip.AddrPort{upstream}, Dialers: []uint32{ward}})
	for i, to := range []string{"127.0.0.1:8080", "127.0.0.9:8080"} {
		if knock(t, f, uint16(40010+i), netip.MustParseAddrPort(to)) { //nolint:gosec // small
			t.Errorf("%s answers a stranger from outside", to)
		}
	}
	wantWord(t, ward, "tcp", upstream.String(), "fhir")
}
