package proxy_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// recorder stands in front of a real audit log, remembers what passes, and can hold up or fail what a disk can.
type recorder struct {
	log *audit.Log
	dir string

	mu      sync.Mutex
	records []proxy.Record
	more    chan struct{} // closed at the next record
	refuse  error         // Append fails with it
	fail    error         // Wait fails with it
	hold    chan struct{} // Wait blocks until it is closed
	waiting chan string   // gets the decision of each Wait that begins while hold is set
}

func newRecorder(t testing.TB, dir string) *recorder {
	t.Helper()
	log, err := audit.Open(t.Context(), audit.Options{Dir: filepath.Join(dir, "audit"), Origin: "clinic.test/host", MinFree: 1,
		Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return &recorder{log: log, dir: filepath.Join(dir, "audit"), more: make(chan struct{}), waiting: make(chan string, 64)}
}

var errDisk = errors.New("the disk does not answer")

func (l *recorder) Append(r *proxy.Record) (proxy.Receipt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return nil, l.refuse
	}
	receipt, err := l.log.Append(r)
	if err != nil {
		return nil, err
	}
	l.records = append(l.records, *r)
	close(l.more)
	l.more = make(chan struct{})
	return held{receipt, l, r.Decision}, nil
}

type held struct {
	proxy.Receipt
	log      *recorder
	decision string
}

func (h held) Wait(ctx context.Context) error {
	h.log.mu.Lock()
	fail, hold := h.log.fail, h.log.hold
	h.log.mu.Unlock()
	if hold != nil {
		h.log.waiting <- h.decision
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	return h.Receipt.Wait(ctx)
}

// set changes how the disk behaves.
func (l *recorder) set(change func(*recorder)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// of gives the records of one hop under a decision id, in order.
func (l *recorder) of(hop proxy.Hop, decision string) []proxy.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.match(func(r *proxy.Record) bool { return r.Hop == hop && r.Decision == decision })
}

func (l *recorder) match(keep func(*proxy.Record) bool) []proxy.Record {
	var out []proxy.Record
	for i := range l.records {
		if keep(&l.records[i]) {
			out = append(out, l.records[i])
		}
	}
	return out
}

// await waits until n records match, and gives them.
func (l *recorder) await(t testing.TB, n int, keep func(*proxy.Record) bool) []proxy.Record {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		found, more := l.match(keep), l.more
		l.mu.Unlock()
		if len(found) >= n {
			return found
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("%d records, want %d", len(found), n)
		}
	}
}

// observer remembers what it is told.
type observer struct {
	mu      sync.Mutex
	calls   map[proxy.Hop]int
	more    chan struct{} // closed at the next call
	defects []string
}

func newObserver() *observer { return &observer{calls: map[proxy.Hop]int{}, more: make(chan struct{})} }

func (o *observer) Call(hop proxy.Hop, _ string, _ *proxy.Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls[hop]++
	close(o.more)
	o.more = make(chan struct{})
}

func (o *observer) Defect(_ proxy.Hop, stack []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.defects = append(o.defects, string(stack))
}

// found are the defects that were not taken away.
func (o *observer) found() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.defects
}

// broken reports whether the log takes no records.
func (l *recorder) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refuse != nil
}
