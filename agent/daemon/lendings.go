package daemon

import (
	"fmt"
	"sync"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// lendings puts into the agent's trail which processes egress has borrowed identities for. A captured egress can refer to
// a process that never called it; it cannot keep the agent from writing that down, and its own trail, or that of the
// service's ingress, has no call to go with it.
//
// Egress borrows anew for each connection, so a process with the same identity is written down once in a while only.
type lendings struct {
	record func(*proxy.Record)
	now    func() time.Time

	mu    sync.Mutex
	known map[lending]time.Time // when it was last written down
}

// lending is one process's identity, as one broker uses it.
type lending struct {
	pid, broker int
	uid         uint32
	id          string
}

// How often the same lending is written down, and how many are told apart. With more, each is written down.
const (
	lendingAgain = 5 * time.Minute
	lendingsMost = 4096
)

func newLendings(record func(*proxy.Record), now func() time.Time) *lendings {
	return &lendings{record: record, now: now, known: map[lending]time.Time{}}
}

// see is told of every process for which a broker asks and that is granted something.
func (l *lendings) see(v workload.Visit) {
	if v.Want != workload.LentSVIDs || v.Broker == nil {
		return
	}
	for _, e := range v.Entries {
		one := lending{v.PID, v.Broker.PID, v.UID, e.ID.String()}
		if l.fresh(one) {
			l.record(&proxy.Record{Event: "identity lent", Caller: one.id, Process: fmt.Sprintf("pid %d, uid %d", v.PID, v.UID),
				Detail: fmt.Sprintf("to pid %d, uid %d", v.Broker.PID, v.Broker.UID)})
		}
	}
}

// fresh reports whether one is to be written down.
func (l *lendings) fresh(one lending) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if at, ok := l.known[one]; ok && now.Sub(at) < lendingAgain && !now.Before(at) {
		return false
	}
	if len(l.known) >= lendingsMost {
		for other, at := range l.known {
			if now.Sub(at) >= lendingAgain || now.Before(at) {
				delete(l.known, other)
			}
		}
	}
	if len(l.known) < lendingsMost {
		l.known[one] = now
	}
	return true
}
