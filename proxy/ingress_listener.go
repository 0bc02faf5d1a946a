package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy/wire"
)

// Peer is what the listener knows of an ingress connection once its handshake is done: the caller's verified
// identity. The connection ends with the first of its two certificates.
type Peer struct {
	ID    spiffeid.ID
	Leaf  *x509.Certificate
	chain []*x509.Certificate
	known *memory
	timer *time.Timer
	gone  func()
	told  atomic.Pointer[xfcc]
}

func (p *Peer) end() {
	p.timer.Stop()
	p.gone()
}

// Server is the listener's side of the journey: TLS, the caller's identity, and the answers that are given before
// there is a request.
func (in *Ingress) Server() *wire.Server { return NewLiveIngress(in).Server() }

func (in *Ingress) accept(c net.Conn, state *tls.ConnectionState, known *memory) (*Peer, error) {
	id, err := peerID(state)
	if err != nil {
		return nil, err
	}
	leaf := state.PeerCertificates[0]
	end, err := in.connectionEnd(leaf)
	if err != nil {
		return nil, err
	}
	return &Peer{ID: id, Leaf: leaf, chain: state.PeerCertificates, known: known, timer: time.AfterFunc(end.Sub(in.Now()), func() { _ = c.Close() })}, nil
}

// entitled is nil while p's connection may stay open.
func (in *Ingress) entitled(p *Peer) error {
	switch {
	case in.Denials.Denied(p.ID):
		return Refuse(CauseDenyList, "%s is on the deny list", p.ID)
	case !in.Service.MayCall(p.ID):
		return Refuse(CauseNotACaller, "%s is not among the callers of %s", p.ID, in.Service.Name)
	}
	return in.vouched(p)
}

// vouched is nil while a CA that counts vouches for p.
func (in *Ingress) vouched(p *Peer) error {
	_, err := p.known.verify(p.chain, in.Self, in.Now())
	return err
}

// connectionEnd is when the first of a connection's two SVIDs ends. The ward's own is taken as it is now: should it have
// been renewed since the handshake, the one in use still has the time that renewing early leaves.
func (in *Ingress) connectionEnd(leaf *x509.Certificate) (time.Time, error) {
	self, err := in.Self.GetX509SVID()
	if err != nil {
		return time.Time{}, err
	}
	if own := self.Certificates[0].NotAfter; own.Before(leaf.NotAfter) {
		return own, nil
	}
	return leaf.NotAfter, nil
}

// outside records a refusal that happened before there was a request, and gives the answer.
func (in *Ingress) outside(remote, caller string, err error) *wire.Response {
	now := in.Now()
	rec := &Record{Schema: RecordSchema, Stage: StageRefusal, Hop: HopIngress, Time: now, Decision: NewDecisionID(now),
		Service: in.Service.Name, Remote: remote, Caller: caller}
	answer := refusal(rec, err, rec.Decision)
	recordRefusal(in.Audit, rec)
	in.Observe.Call(HopIngress, in.Service.Name, rec)
	return answer
}
