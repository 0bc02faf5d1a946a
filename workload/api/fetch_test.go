package api_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// BenchmarkFetchX509 is a workload's first fetch: a new connection, one answer, and away. What counts is the
// server's own processor time; it runs in a process of its own, with uid, unit, path and hash attestation on.
// The floor is a bare gRPC server that replays the captured answer to everybody.
func BenchmarkFetchX509(b *testing.B) {
	ward, floor := servers(b)
	b.Run("ward", func(b *testing.B) { fetches(b, "cpu-µs/op", ward) })
	b.Run("floor", func(b *testing.B) { fetches(b, "cpu-µs/op", floor) })
	// By turns, so that whatever else the machine does meets both alike.
	b.Run("ratio", func(b *testing.B) { fetches(b, "", ward, floor) })
}

// BenchmarkStream is what an open stream costs the server in resident memory, each on its own connection.
func BenchmarkStream(b *testing.B) {
	ward, floor := servers(b)
	for name, s := range map[string]*benchServer{"ward": ward, "floor": floor} {
		b.Run(name, func(b *testing.B) {
			const streams = 1000
			for b.Loop() {
				_, before := s.usage("memory")
				conns := make([]*grpc.ClientConn, streams)
				for i := range conns {
					conns[i] = s.fetch(b)
				}
				_, after := s.usage("memory")
				for _, c := range conns {
					c.Close()
				}
				b.ReportMetric(float64(after-before)/streams, "KiB/stream")
				b.ReportMetric(float64(before)/1024, "MiB-idle")
			}
		})
	}
}

type benchServer struct {
	*child
	path string
}

func servers(b *testing.B) (ward, floor *benchServer) {
	dir := b.TempDir()
	begin := func(role string) *benchServer {
		path := filepath.Join(dir, role+".sock")
		s := &benchServer{start(b, self(b), role, path, nil), path}
		if s.first != "ready" {
			b.Fatal(s.first)
		}
		return s
	}
	ward = begin(wardRole)
	conn, stream := ward.open(b)
	defer conn.Close()
	answer, err := stream.Recv()
	if err != nil {
		b.Fatal(err)
	}
	raw, err := proto.Marshal(answer)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "answer"), raw, 0o600); err != nil {
		b.Fatal(err)
	}
	return ward, begin(floorRole)
}

func (s *benchServer) open(b *testing.B) (*grpc.ClientConn, spiffe.SpiffeWorkloadAPI_FetchX509SVIDClient) {
	conn, err := grpc.NewClient("unix://"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(b.Context(), "workload.spiffe.io", "true")
	ctx, cancel := context.WithCancel(ctx)
	b.Cleanup(cancel)
	stream, err := spiffe.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &spiffe.X509SVIDRequest{})
	if err != nil {
		b.Fatal(err)
	}
	return conn, stream
}

func (s *benchServer) fetch(b *testing.B) *grpc.ClientConn {
	conn, stream := s.open(b)
	if _, err := stream.Recv(); err != nil {
		b.Fatal(err)
	}
	return conn
}

// fetches reports the processor time that each server takes for a fetch, or how many times the second's the
// first one's is.
func fetches(b *testing.B, unit string, servers ...*benchServer) {
	cpu := make([]time.Duration, len(servers))
	for i, s := range servers {
		for range 50 { // warm
			s.fetch(b).Close()
		}
		cpu[i], _ = s.usage("cpu")
	}
	n := 0
	for b.Loop() {
		for _, s := range servers {
			s.fetch(b).Close()
		}
		n++
	}
	for i, s := range servers {
		after, _ := s.usage("cpu")
		cpu[i] = after - cpu[i]
	}
	if len(servers) == 2 {
		b.ReportMetric(float64(cpu[0])/float64(cpu[1]), "ward/floor")
		return
	}
	b.ReportMetric(float64(cpu[0].Nanoseconds())/1000/float64(n), unit)
}
