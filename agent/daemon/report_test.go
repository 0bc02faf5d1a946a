package daemon

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// Who reads the log looks for processes that were turned away; one that hung up is none of them.
func TestOrdinaryEndOfAConnectionIsNoRefusal(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	w := newWitness(prometheus.NewRegistry(), zap.New(core), func(*proxy.Record) {})
	w.Refused(workload.Visit{}, &workload.Refusal{Err: peer.ErrClosed})
	if n := logs.Len(); n != 0 {
		t.Errorf("%d lines: %s", n, logs.All()[0].Message)
	}
	w.Refused(workload.Visit{}, &workload.Refusal{Err: attest.ErrReplaced})
	if logs.Len() != 1 {
		t.Error("a process that replaced its program is not told of")
	}
}
