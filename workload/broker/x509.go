package broker

import (
	"context"
	"io"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/endpoint"
)

// handler is the Broker API itself. BA §2: RPCs MUST NOT be added or modified.
type handler struct {
	spiffe.UnimplementedAPIServer
	lender  Lender
	resolve Resolver
}

// resolveTimeout bounds the kernel's work of finding out whom a reference names.
const resolveTimeout = 5 * time.Second

// SubscribeToX509SVID streams the SVIDs that may be lent of the referenced workload.
func (h *handler) SubscribeToX509SVID(r *spiffe.SubscribeToX509SVIDRequest, stream spiffe.API_SubscribeToX509SVIDServer) error {
	return h.lend(stream.Context(), r.GetReference(), workload.LentSVIDs, func(u workload.Update) error { return stream.Send(svidResponse(u)) })
}

// SubscribeToX509Bundles streams the bundles that the referenced workload is to trust.
func (h *handler) SubscribeToX509Bundles(r *spiffe.SubscribeToX509BundlesRequest, stream spiffe.API_SubscribeToX509BundlesServer) error {
	return h.lend(stream.Context(), r.GetReference(), workload.LentBundles, func(u workload.Update) error { return stream.Send(bundlesResponse(u)) })
}

// lend answers for the referenced process until it is entitled to nothing more.
func (h *handler) lend(ctx context.Context, reference *spiffe.WorkloadReference, want workload.Want, send func(workload.Update) error) error {
	c, err := endpoint.ConnOf(ctx)
	if err != nil {
		return err
	}
	broker := brokerOf(c)
	report := workload.Visit{Want: want, Broker: broker}
	// BA §3.1.1: exactly one reference, of a type that is understood.
	ref, err := Unpack(reference)
	if err != nil {
		return statusOf(h.lender.Refuse(report, err))
	}
	// BA §3.1.1: resolved on the server, which verifies that the workload exists and trusts nothing else of the reference.
	report.PID = ref.Process.PID
	bounded, cancel := context.WithTimeout(ctx, resolveTimeout)
	process, err := h.resolve(bounded, ref)
	cancel()
	switch {
	case ctx.Err() != nil && err != nil:
		return statusOf(ctx.Err())
	case err != nil:
		return statusOf(h.lender.Refuse(report, err))
	}
	if c, ok := process.(io.Closer); ok {
		defer func() { _ = c.Close() }()
	}
	return statusOf(h.lender.Lend(ctx, broker, process, want, send))
}

// svidResponse is the complete state: BA §4.4, every message MUST include the full set of information.
func svidResponse(u workload.Update) *spiffe.SubscribeToX509SVIDResponse {
	bundle := endpoint.BundleDER(u.Bundle)
	r := &spiffe.SubscribeToX509SVIDResponse{Svids: make([]*spiffe.X509SVID, len(u.SVIDs))}
	for i, s := range u.SVIDs { // BA §5.3, WAPI §8: the default identity is the first
		r.Svids[i] = &spiffe.X509SVID{SpiffeId: s.ID.String(), X509Svid: s.ChainDER, X509SvidKey: s.KeyDER, Bundle: bundle, Hint: endpoint.UniqueHint(i, func(j int) string { return u.SVIDs[j].Entry.Hint })}
	}
	return r
}

// bundlesResponse has the server's own trust domain, keyed by its SPIFFE ID: BA §5.2.2.
func bundlesResponse(u workload.Update) *spiffe.SubscribeToX509BundlesResponse {
	return &spiffe.SubscribeToX509BundlesResponse{Bundles: map[string][]byte{u.Bundle.TrustDomain().IDString(): endpoint.BundleDER(u.Bundle)}}
}

// BA §1: operators MAY administratively disable a profile.
var errJWT = status.Error(codes.Unimplemented, "the JWT-SVID profile is disabled")

// FetchJWTSVID is refused: the profile is off.
func (*handler) FetchJWTSVID(context.Context, *spiffe.FetchJWTSVIDRequest) (*spiffe.FetchJWTSVIDResponse, error) {
	return nil, errJWT
}

// SubscribeToJWTBundles is refused: the profile is off.
func (*handler) SubscribeToJWTBundles(*spiffe.SubscribeToJWTBundlesRequest, spiffe.API_SubscribeToJWTBundlesServer) error {
	return errJWT
}
