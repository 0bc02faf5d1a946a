package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkCall is one whole call through both hops on connections that are open already: caller to egress, mTLS to
// ingress, to the FHIR server and back, with a cached token, policy, the audit trail and metrics, everything in one process.
// The caller and the FHIR server allocate nothing.
func BenchmarkCall(b *testing.B) {
	for name, c := range map[string]struct {
		raw   func(*world) string
		reply string
	}{
		"read": {func(w *world) string { return request("GET /fhir/Observation/1", "", bearer(w.token())) }, reply(200, observation("1", "a"))},
		"search": {func(w *world) string { return request("GET /fhir/Observation?code=a", "", bearer(w.token())) },
			reply(200, searchset(observation("1", "a")))},
		"create": {func(w *world) string {
			return write("POST /fhir/Observation", w.issuer.token(w, "ehr"), newObservation)
		}, reply(201, observation("9", "a"))},
		"refused": {func(w *world) string { return request("GET /fhir/Account/1", "", bearer(w.token())) }, ""},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, setup{dir: memory(b), upstream: canned(b, c.reply), plain: true})
			p := w.portal
			if name == "create" {
				p = w.ehr
			}
			conn, raw := w.dialEgress(p), []byte(c.raw(w))
			in := bufio.NewReader(conn)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(raw); err != nil {
					b.Fatal(err)
				}
				if err := skip(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// memory is a folder whose fdatasync costs nothing, so that what is measured is Ward.
func memory(b testing.TB) string {
	b.Helper()
	const shm = "/dev/shm"
	var s unix.Statfs_t
	if unix.Statfs(shm, &s) != nil || s.Type != unix.TMPFS_MAGIC || s.Bavail*uint64(s.Bsize) < 1<<30 || unix.Access(shm, unix.W_OK) != nil { //nolint:gosec // no size is negative
		b.Log("there is no folder in memory here: the disk's time is in the figures")
		return b.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "ward-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// canned is a FHIR server that answers every request with the same bytes.
func canned(b testing.TB, reply string) net.Addr {
	l := listen(b)
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				in, out := bufio.NewReader(c), []byte(reply)
				for skip(in) == nil {
					if _, err := c.Write(out); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr()
}

// skip reads one message that has a Content-Length or no body.
func skip(in *bufio.Reader) error {
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case len(line) == len("\r\n"):
			_, err := in.Discard(length)
			return err
		case bytes.HasPrefix(line, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len("Content-Length: "):]))); err != nil {
				return err
			}
		case bytes.HasPrefix(line, []byte("Transfer-Encoding: ")):
			return errors.New("chunks")
		}
	}
}
