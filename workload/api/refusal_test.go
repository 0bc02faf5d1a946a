package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

func TestStatusOf(t *testing.T) {
	seen := attest.Attestation{Strength: attest.Weak, Selectors: attest.NewSelectors(
		attest.Selector{Type: attest.UnixGroup, Value: "4"}, attest.Selector{Type: attest.UnixUID, Value: "1000"}, attest.Selector{Type: attest.ExePath, Value: "/tmp/a\nb"})}
	for _, tc := range []struct {
		name string // the section of the SPIFFE Workload Endpoint
		err  error
		code codes.Code
		text string
	}{
		{"6 no identity", workload.ErrNoIdentity, codes.PermissionDenied,
			`no identity is enrolled for this process, which is seen as: exe.path: "/tmp/a\nb", unix.uid: 1000, unix.group: 4 (weak) (reference R)`},
		{"6 exit", attest.ErrExited, codes.PermissionDenied, "the process that opened this connection has exited (reference R)"},
		{"6 exec", attest.ErrReplaced, codes.PermissionDenied, "the process that opened this connection has replaced its program; connect again (reference R)"},
		{"6 mismatch", attest.ErrMismatch, codes.PermissionDenied, "it cannot be told for certain which process opened this connection (reference R)"},
		{"6 exit while the SVID is unavailable", fmt.Errorf("%w: %w", workload.ErrUnavailable, attest.ErrExited), codes.PermissionDenied,
			"the process that opened this connection has exited (reference R)"},
		{"6 unavailable", workload.ErrUnavailable, codes.Unavailable,
			"an identity is enrolled for this process, but no valid SVID or bundle can be had at this moment; retry (reference R)"},
		{"6 closed", workload.ErrClosed, codes.Unavailable, "the agent is shutting down (reference R)"},
		{"6 attestor", errors.New("secret detail"), codes.Unavailable, "the facts about this process could not be read; retry (reference R)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := status.Convert(statusOf(&workload.Refusal{Reference: "R", Attestation: seen, Err: fmt.Errorf("inner: %w", tc.err)}))
			if got.Code() != tc.code || got.Message() != tc.text {
				t.Errorf("%s %q", got.Code(), got.Message())
			}
		})
	}
	for err, code := range map[error]codes.Code{
		context.Canceled: codes.Canceled, context.DeadlineExceeded: codes.DeadlineExceeded,
		status.Error(codes.ResourceExhausted, "too large"): codes.ResourceExhausted,
	} {
		if got := status.Code(statusOf(err)); got != code {
			t.Errorf("%v became %s", err, got)
		}
	}
}

func TestDescribeIsBounded(t *testing.T) {
	var many []attest.Selector
	for i := range 65536 {
		many = append(many, attest.Selector{Type: attest.UnixGroup, Value: fmt.Sprint(i)})
	}
	if got := describe(attest.Attestation{Selectors: attest.NewSelectors(many...)}); len(got) > maxDescription+50 || !strings.Contains(got, "more") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
