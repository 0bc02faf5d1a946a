package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/broker"
)

// Real processes, named by the kernel to egress, and pinned and attested by an agent in a process of its own.
func TestRealCallers(t *testing.T) {
	w := realWard(t)
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network+" exit", func(t *testing.T) {
			caller, conn, r := w.call(network)
			l := w.borrow(r)
			if l.ID().String() != "spiffe://clinic.test/portal" {
				t.Error(l.ID())
			}
			if err := conn.Confirm(); err != nil {
				t.Error(err)
			}
			began := time.Now()
			caller.end()
			over(t, l, attest.ErrExited)
			t.Logf("an exit reaches the loan in %v", time.Since(began))
			if _, err := w.client.Borrow(t.Context(), r); err == nil || errors.Is(err, workload.ErrUnavailable) {
				t.Errorf("after the exit: %v", err)
			}
		})
		t.Run(network+" exec", func(t *testing.T) {
			caller, _, r := w.call(network)
			l := w.borrow(r)
			began := time.Now()
			if _, err := fmt.Fprintln(caller.in, "go"); err != nil {
				t.Fatal(err)
			}
			over(t, l, attest.ErrReplaced)
			t.Logf("an exec reaches the loan in %v", time.Since(began))
			// Asked again, the process is what it is now: no workload.
			if _, err := w.client.Borrow(t.Context(), r); !errors.Is(err, workload.ErrNoIdentity) {
				t.Errorf("after the exec: %v", err)
			}
			if err := caller.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("another inode", func(t *testing.T) {
		_, _, r := w.call("unix")
		r.Process.Inode++
		if _, err := w.client.Borrow(t.Context(), r); !errors.Is(err, attest.ErrReference) {
			t.Errorf("%v", err)
		}
	})
	t.Run("another cookie", func(t *testing.T) {
		_, _, r := w.call("tcp")
		r.Conn.Cookie++
		if _, err := w.client.Borrow(t.Context(), r); !errors.Is(err, attest.ErrReference) {
			t.Errorf("%v", err)
		}
	})
}

// BenchmarkBorrow is what a caller's new connection costs egress: one round trip to the agent, which looks the process
// up, attests it with every attestor, and answers. A fresh stream for a connection, a further loan for a process.
func BenchmarkBorrow(b *testing.B) {
	w := realWard(b)
	for _, network := range []string{"tcp", "unix"} {
		b.Run(map[string]string{"tcp": "connection", "unix": "process"}[network], func(b *testing.B) {
			at := &ward{t: b, agent: w.agent, client: w.client, pinner: w.pinner}
			_, _, r := at.call(network)
			held := w.borrow(r)
			defer held.Close()
			var took []time.Duration
			before, _ := w.agent.usage("cpu")
			for b.Loop() {
				start := time.Now()
				l, err := w.client.Borrow(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				l.Close()
			}
			after, _ := w.agent.usage("cpu")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-µs")
			b.ReportMetric(float64((after-before).Microseconds())/float64(len(took)), "agent-cpu-µs/op")
		})
	}
}

// BenchmarkLoan is what an open loan costs the agent and this process in resident memory, each of its own connection.
func BenchmarkLoan(b *testing.B) {
	const loans = 2000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	if files.Max < 6*loans {
		b.Skipf("SKIPPED: needs to open %d files, may open %d", 6*loans, files.Max)
	}
	w := realWard(b)
	_, _, r := (&ward{t: b, agent: w.agent, client: w.client, pinner: w.pinner}).call("tcp")
	for b.Loop() {
		held := make([]*broker.Loan, loans)
		held[0] = w.borrow(r)
		_, before := w.agent.usage("memory")
		for i := range held {
			if held[i] != nil {
				continue
			}
			var err error
			if held[i], err = w.client.Borrow(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
		_, after := w.agent.usage("memory")
		for _, l := range held {
			l.Close()
		}
		b.ReportMetric(float64(after-before)/(loans-1), "KiB/stream")
		b.ReportMetric(float64(before)/1024, "MiB-idle")
	}
}
