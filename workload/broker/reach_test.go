package broker_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/api"
)

// Every change reaches all who hold the identity by an event, whichever way they came to it: a Workload API stream, a
// holding in the agent's own process, a loan. How long that took is in the test's log.
func TestReach(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*bench)
		ends   bool
	}{
		{"an entry is edited", func(b *bench) {
			e := portal()
			e.DNSNames = []string{"portal.clinic.test"}
			b.load(e)
		}, false},
		{"the bundle changes", func(b *bench) {
			_, root := b.authority.ca()
			b.authority.publish(b.authority.root, root)
		}, false},
		{"the entry is removed", func(b *bench) { b.load() }, true},
		{"the ID is denied", func(b *bench) { b.denials.deny(portal().ID) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := serve(t, []*workload.Entry{portal()})
			p, r := b.run(1)
			stream := workloadStream(t, b, p)
			holding, err := b.agent.service.Hold(b.ctx(), p, workload.LentSVIDs)
			if err != nil {
				t.Fatal(err)
			}
			defer holding.Close()
			loan := b.borrow(b.client(), r)
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			held, lent := holding.Changed(), loan.Changed()

			began := time.Now()
			tt.change(b)
			<-held
			byHolding := time.Since(began)
			<-lent
			byLoan := time.Since(began)
			_, err = stream.Recv()
			byStream := time.Since(began)
			t.Logf("holding %v, loan %v, Workload API stream %v", byHolding, byLoan, byStream)
			if ended := status.Code(err) == codes.PermissionDenied; ended != tt.ends || !ended && err != nil {
				t.Errorf("the stream: %v", err)
			}
			for who, err := range map[string]error{"holding": holding.Err(), "loan": loan.Err()} {
				if ended := errors.Is(err, workload.ErrNoIdentity); ended != tt.ends || !ended && err != nil {
					t.Errorf("the %s: %v", who, err)
				}
			}
		})
	}
}

// workloadStream is a stream of the Workload API for p, on the same service.
func workloadStream(t *testing.T, b *bench, p *process) spiffe.SpiffeWorkloadAPI_FetchX509SVIDClient {
	t.Helper()
	server, err := api.New(api.Options{Watcher: b.agent.service, Registerer: prometheus.NewRegistry(), Pin: func(net.Conn) (workload.Process, error) { return p, nil }})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(b.dir, "workload.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		server.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	server.SetReady()
	c, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := spiffe.NewSpiffeWorkloadAPIClient(c).FetchX509SVID(metadata.AppendToOutgoingContext(b.ctx(), "workload.spiffe.io", "true"), &spiffe.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Five hundred loans of as many processes hear of a denial; the slowest is what counts.
func TestDenialReachesManyLoans(t *testing.T) {
	b := serve(t, []*workload.Entry{portal()})
	c := b.client()
	var done []<-chan struct{}
	for pid := range 500 {
		_, r := b.run(pid + 1)
		done = append(done, b.borrow(c, r).Done())
	}
	began := time.Now()
	b.denials.deny(portal().ID)
	var took []time.Duration
	for _, ch := range done {
		<-ch
		took = append(took, time.Since(began))
	}
	t.Logf("the median loan is over after %v, the slowest after %v", took[len(took)/2], slices.Max(took))
}

// A session's attestation that may not be older than a second is repeated over the Broker API too.
func TestAgedLoanEnds(t *testing.T) {
	e := portal()
	e.MaxAge = workload.MinAge
	b := serve(t, []*workload.Entry{e})
	p, r := b.run(1)
	l := b.borrow(b.client(), r)
	p.become(attest.ErrReplaced) // no event tells
	over(t, l, attest.ErrReplaced)
}
