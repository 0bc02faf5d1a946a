package attest_test

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/attest/systemd"
	wardunix "github.com/wardmesh/ward/attest/unix"
)

// BenchmarkAttest pins the peer of an accepted Unix connection, a process of its own, reads its facts and closes
// it again: plain is user and unit, warm adds path and hash of an executable whose hash is remembered.
func BenchmarkAttest(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchmarkUnix(b, benchAttestors(b, false)) })
	b.Run("warm", func(b *testing.B) { benchmarkUnix(b, benchAttestors(b, true)) })
}

// BenchmarkAttestTCP is the same for a loopback TCP connection whose client runs in a cgroup of its own, as a unit
// does.
func BenchmarkAttestTCP(b *testing.B) {
	rootOnly(b, "make a cgroup")
	for name, without := range map[string]peer.Missing{"plain": {}, "without_privileges": {PidfdGetfd: true, FileHandles: true}} {
		b.Run(name, func(b *testing.B) {
			pinner := newPinner(b, peer.Options{Sweep: time.Second, Without: without})
			l := listenTCP(b, "127.0.0.1:0")
			actor := start(b, "", inOwnCgroup(b))
			actor.do("tcp " + l.Addr().String())
			conn := accept[*net.TCPConn](b, l)
			attestors := benchAttestors(b, false)
			benchmark(b, attestors, func() (*peer.Process, error) { return pinner.TCP(b.Context(), conn) })
		})
	}
}

func benchmarkUnix(b *testing.B, attestors []attest.Attestor) {
	pinner := newPinner(b, peer.Options{Sweep: time.Second})
	l := listenUnix(b)
	actor := start(b, "")
	actor.do("unix " + l.Addr().String())
	conn := accept[*net.UnixConn](b, l)
	benchmark(b, attestors, func() (*peer.Process, error) { return pinner.Unix(conn) })
}

func benchmark(b *testing.B, attestors []attest.Attestor, pin func() (*peer.Process, error)) {
	once := func() {
		p, err := pin()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := attest.Run(b.Context(), p, attestors); err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
	// The program was copied just now, and the hash of so young a file is not remembered.
	for begin := time.Now(); time.Since(begin) < 1100*time.Millisecond; {
		once()
	}
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		once()
	}
	// What it takes on a machine that others use too.
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
}

// cpu is the processor time that this process has used, in nanoseconds.
func cpu(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func benchAttestors(b *testing.B, hash bool) []attest.Attestor {
	b.Helper()
	s, err := systemd.New()
	if err != nil {
		b.Fatal(err)
	}
	attestors := []attest.Attestor{wardunix.Attestor{}, s}
	if hash {
		e, err := exe.New(exe.Options{SHA256: true})
		if err != nil {
			b.Fatal(err)
		}
		attestors = append(attestors, e)
	}
	return attestors
}

func inOwnCgroup(b *testing.B) func(*exec.Cmd) {
	b.Helper()
	root, err := attest.Cgroup2Mount()
	if err != nil {
		b.Skipf("SKIPPED: needs cgroup2: %v", err)
	}
	dir, err := os.MkdirTemp(root, "ward-bench-")
	if err != nil {
		b.Skipf("SKIPPED: needs a writable cgroup2: %v", err)
	}
	b.Cleanup(func() { removeCgroup(b, dir) })
	f, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return func(cmd *exec.Cmd) {
		attributes(cmd).UseCgroupFD, attributes(cmd).CgroupFD = true, int(f.Fd())
	}
}
