package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	_ x509svid.Source   = (*Holding)(nil)
	_ x509bundle.Source = (*Holding)(nil)
)

// Holding is the identity of one process, kept up to date until it ends. It stays with the ID that it began
// with: a process whose default identity becomes another one loses its Holding only if it loses that ID, and
// never sees the SVID of another ID under it. An SVID that ends while none can be issued leaves the Holding
// without one until the next is.
type Holding struct {
	p      Process
	id     spiffeid.ID
	cancel context.CancelFunc
	ended  chan struct{} // closed when the watch is over

	mu      sync.Mutex
	svid    *x509svid.SVID
	bundle  *x509bundle.Bundle
	err     error // why there is no SVID: for now, or for good once ended is closed
	changed chan struct{}
}

// Hold waits until p's default identity among those wanted is at hand, X509SVIDs or LentSVIDs, and keeps it
// up to date until Close, which comes before p itself is let go. Ctx bounds the wait only. The error is ctx's
// or a *Refusal.
func (s *Service) Hold(ctx context.Context, p Process, want Want) (*Holding, error) {
	if !want.issues() {
		return nil, fmt.Errorf("workload: a holding of %s only makes no sense", want)
	}
	background, cancel := context.WithCancel(context.Background())
	h := &Holding{p: p, cancel: cancel, ended: make(chan struct{}), changed: make(chan struct{})}
	first := h.changed
	go func() {
		defer close(h.ended)
		h.lose(h.keep(background, s, want))
	}()
	select {
	case <-first:
	case <-ctx.Done():
		h.Close()
		return nil, ctx.Err()
	}
	h.mu.Lock()
	err := h.err
	h.mu.Unlock()
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// keep follows p until it is entitled to the ID no more. That none can be issued at the moment is no reason to
// give up once there has been one.
func (h *Holding) keep(ctx context.Context, s *Service, want Want) error {
	for {
		err := s.follow(ctx, Visit{Want: want}, h.p, &h.id, h.take)
		if h.id.IsZero() || !errors.Is(err, ErrUnavailable) {
			return err
		}
		h.lose(err)
		pause := time.NewTimer(s.o.Recheck)
		select {
		case <-pause.C:
		case <-h.p.Done(): // follow says what these three mean
		case <-s.done:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// take is given every Update.
func (h *Holding) take(u Update) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.id.IsZero() { // once, before Hold returns: ID needs no lock
		h.id = u.SVIDs[0].ID
	}
	h.svid, h.bundle, h.err = u.SVIDs[0].SVID, u.Bundle, nil
	h.publish()
	return nil
}

// lose is given the reason why there is no SVID.
func (h *Holding) lose(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err, h.svid, h.bundle = err, nil, nil
	h.publish()
}

func (h *Holding) publish() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// ID is the identity held; it never changes.
func (h *Holding) ID() spiffeid.ID { return h.id }

// GetX509SVID returns the current SVID, which has not expired. It implements x509svid.Source.
func (h *Holding) GetX509SVID() (*x509svid.SVID, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	if !time.Now().Before(h.svid.Certificates[0].NotAfter) {
		return nil, fmt.Errorf("%w: the SVID of %s has expired", ErrUnavailable, h.id)
	}
	return h.svid, nil
}

// GetX509BundleForTrustDomain returns the current bundle, of the holder's own trust domain only. It
// implements x509bundle.Source.
func (h *Holding) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	return h.bundle.GetX509BundleForTrustDomain(td)
}

// Changed returns a channel that is closed when the SVID, the bundle or the entitlement has changed since
// the call.
func (h *Holding) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// Ended is closed when the identity has ended for good: the process is gone or is entitled to it no more. Err then
// says why.
func (h *Holding) Ended() <-chan struct{} { return h.ended }

// Err is nil while the process lives, runs the same program, and is still entitled to ID. It looks at the
// process itself, so that no event needs to have arrived yet.
func (h *Holding) Err() error {
	h.mu.Lock()
	err := h.err
	h.mu.Unlock()
	if err != nil {
		return err
	}
	return h.p.Alive()
}

// Close gives the identity back and returns once nothing of the holding runs any more.
func (h *Holding) Close() error {
	h.cancel()
	<-h.ended
	return nil
}
