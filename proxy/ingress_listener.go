package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy/wire"
)

// Peer is what the listener knows of an ingress connection once its handshake is done: the caller's verified
// identity. The connection ends with the first of its two certificates.
type Peer struct {
	ID    spiffeid.ID
	Leaf  *x509.Certificate
	timer *time.Timer
}

// Server is the listener's side of the journey: TLS, the caller's identity, and the answers that are given before
// there is a request.
func (in *Ingress) Server() *wire.Server {
	return &wire.Server{
		TLS: ServerTLS(in.Self, in.Now),
		Accept: func(_ context.Context, c net.Conn, state *tls.ConnectionState) (any, error) {
			id, err := peerID(state)
			if err != nil {
				return nil, err
			}
			leaf := state.PeerCertificates[0]
			end, err := in.connectionEnd(leaf)
			if err != nil {
				return nil, err
			}
			return &Peer{ID: id, Leaf: leaf, timer: time.AfterFunc(end.Sub(in.Now()), func() { _ = c.Close() })}, nil
		},
		Closed: func(conn any) { conn.(*Peer).timer.Stop() },
		Failed: func(remote net.Addr, err error) {
			in.outside(remote.String(), "", Refuse(CauseNoIdentity, "TLS: %w", err))
		},
		Handle: in.Serve,
		Refuse: func(conn any, remote string, status int) *wire.Response {
			return in.outside(remote, conn.(*Peer).ID.String(), Refuse(statusCause(status), "not acceptable HTTP (%d)", status))
		},
		Defect: func(stack []byte) { in.Observe.Defect(HopIngress, stack) },
	}
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
