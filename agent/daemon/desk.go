package daemon

import (
	"sync"
	"sync/atomic"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// desk is where the records of this process are handed in, whoever keeps the trail: this process, or the one that has
// taken its place. While the trail changes hands, records wait.
type desk struct {
	held   atomic.Pointer[audit.Trail] // the trail, while this process keeps it
	paused atomic.Bool

	mu sync.RWMutex // held for writing while nobody keeps it
	to keeper
}

// keeper takes records, and lines that another process has encoded. *audit.Trail and *audit.Sender are two.
type keeper interface {
	proxy.Recorder
	audit.Lines
}

var _ keeper = (*desk)(nil)

// newDesk makes a desk at which records wait until resume.
func newDesk() *desk {
	k := &desk{to: nobody{audit.ErrClosed}}
	k.pause()
	return k
}

// Append implements proxy.Recorder.
func (k *desk) Append(r *proxy.Record) (proxy.Receipt, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.to.Append(r)
}

// AppendLine implements audit.Lines.
func (k *desk) AppendLine(line []byte) (proxy.Receipt, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.to.AppendLine(line)
}

// trail is what this process keeps, or nil.
func (k *desk) trail() *audit.Trail { return k.held.Load() }

// pause lets records wait, once those that are being appended are.
func (k *desk) pause() {
	k.mu.Lock()
	k.paused.Store(true)
}

// resume lets them go on, to whoever keeps the trail from now on. It ends a pause.
func (k *desk) resume(to keeper) {
	t, _ := to.(*audit.Trail)
	k.held.Store(t)
	k.to = to
	k.paused.Store(false)
	k.mu.Unlock()
}

// nobody keeps the trail: nothing is recorded, so that nothing is disclosed.
type nobody struct{ why error }

func (n nobody) Append(*proxy.Record) (proxy.Receipt, error)   { return nil, n.why }
func (n nobody) AppendLine(line []byte) (proxy.Receipt, error) { return nil, n.why }
