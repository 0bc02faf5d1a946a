package api

import (
	"context"

	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/workload"
	"github.com/wardmesh/ward/workload/endpoint"
)

// handler is the Workload API itself. WAPI §2: it MUST NOT be extended; more services stand beside it.
type handler struct {
	spiffe.UnimplementedSpiffeWorkloadAPIServer
	watcher Watcher
}

// FetchX509SVID streams the process's X.509-SVIDs.
func (h *handler) FetchX509SVID(_ *spiffe.X509SVIDRequest, stream spiffe.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return h.watch(stream.Context(), workload.X509SVIDs, func(u workload.Update) error { return stream.Send(svidResponse(u)) })
}

// FetchX509Bundles streams the bundles that the process is to trust.
func (h *handler) FetchX509Bundles(_ *spiffe.X509BundlesRequest, stream spiffe.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return h.watch(stream.Context(), workload.X509Bundles, func(u workload.Update) error { return stream.Send(bundlesResponse(u)) })
}

// watch sends each update until the process is entitled to none.
func (h *handler) watch(ctx context.Context, want workload.Want, send func(workload.Update) error) error {
	c, err := endpoint.ConnOf(ctx)
	if err != nil {
		return err
	}
	return statusOf(h.watcher.Watch(ctx, c.Process, want, send))
}

// svidResponse is the complete state: WAPI §4.3, every message MUST include the full set of information.
func svidResponse(u workload.Update) *spiffe.X509SVIDResponse {
	bundle := endpoint.BundleDER(u.Bundle)
	r := &spiffe.X509SVIDResponse{Svids: make([]*spiffe.X509SVID, len(u.SVIDs))}
	for i, s := range u.SVIDs { // WAPI §8: the default identity is the first
		r.Svids[i] = &spiffe.X509SVID{
			SpiffeId:    s.ID.String(),
			X509Svid:    s.ChainDER,
			X509SvidKey: s.KeyDER,
			Bundle:      bundle,
			Hint:        endpoint.UniqueHint(i, func(j int) string { return u.SVIDs[j].Entry.Hint }),
		}
	}
	return r
}

// bundlesResponse has the server's own trust domain, keyed by its SPIFFE ID: WAPI §5.2.2.
func bundlesResponse(u workload.Update) *spiffe.X509BundlesResponse {
	return &spiffe.X509BundlesResponse{Bundles: map[string][]byte{u.Bundle.TrustDomain().IDString(): endpoint.BundleDER(u.Bundle)}}
}

// Profiles that are off. WAPI §1: operators MAY disable a profile; §7: all RPCs of the WIT profile MUST
// return Unimplemented where it is not supported.
var (
	errJWT = status.Error(codes.Unimplemented, "the JWT-SVID profile is disabled")
	errWIT = status.Error(codes.Unimplemented, "the WIT-SVID profile is disabled")
)

// FetchJWTSVID is refused: the profile is off.
func (*handler) FetchJWTSVID(context.Context, *spiffe.JWTSVIDRequest) (*spiffe.JWTSVIDResponse, error) {
	return nil, errJWT
}

// FetchJWTBundles is refused: the profile is off.
func (*handler) FetchJWTBundles(*spiffe.JWTBundlesRequest, spiffe.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	return errJWT
}

// ValidateJWTSVID is refused: the profile is off.
func (*handler) ValidateJWTSVID(context.Context, *spiffe.ValidateJWTSVIDRequest) (*spiffe.ValidateJWTSVIDResponse, error) {
	return nil, errJWT
}

// FetchWITSVID is refused: the profile is off.
func (*handler) FetchWITSVID(*spiffe.WITSVIDRequest, spiffe.SpiffeWorkloadAPI_FetchWITSVIDServer) error {
	return errWIT
}

// FetchWITBundles is refused: the profile is off.
func (*handler) FetchWITBundles(*spiffe.WITBundlesRequest, spiffe.SpiffeWorkloadAPI_FetchWITBundlesServer) error {
	return errWIT
}
