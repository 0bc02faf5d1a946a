package proxy_test

import (
	"bufio"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkBulk is a reply of 50 MB through both hops, which nobody inspects, from caller to FHIR server and back. Its
// figure is this process's CPU time for each GB: the caller's and the FHIR server's, too, which "direct" has alone.
func BenchmarkBulk(b *testing.B) {
	const size = 50 << 20
	reply := "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: " + strconv.Itoa(size) + "\r\n\r\n" + strings.Repeat("x", size)
	for _, name := range []string{"direct", "ward"} {
		b.Run(name, func(b *testing.B) {
			fhir := canned(b, reply)
			w := newWorld(b, setup{dir: memory(b), upstream: fhir, plain: true})
			conn := w.dialEgress(w.portal)
			if name == "direct" {
				conn = w.dial(fhir.String())
			}
			_ = conn.SetDeadline(time.Time{})
			raw, buf := []byte(request("GET /fhir/Observation/1", "", bearer(w.token()))), make([]byte, 128<<10)
			in := bufio.NewReaderSize(conn, 4<<10)
			b.SetBytes(size)
			begun := spent(b)
			for b.Loop() {
				if _, err := conn.Write(raw); err != nil {
					b.Fatal(err)
				}
				if err := swallow(in, buf, size); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((spent(b)-begun).Seconds()/(float64(b.N)*size/1e9), "cpu-s/GB")
		})
	}
}

// swallow reads a reply whose body has size bytes.
func swallow(in *bufio.Reader, buf []byte, size int) error {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == len("\r\n") {
			break
		}
	}
	for size > 0 {
		n, err := in.Read(buf[:min(size, len(buf))])
		if err != nil {
			return err
		}
		size -= n
	}
	return nil
}

// spent is the time of this process's CPU so far.
func spent(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
