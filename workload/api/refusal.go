package api

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// statusOf is the one mapping of errors to the wire. What a process learns is about itself only.
func statusOf(err error) error {
	var r *workload.Refusal
	if !errors.As(err, &r) {
		if s := status.FromContextError(err); s.Code() != codes.Unknown {
			return s.Err()
		}
		return err // from Send: a status already
	}
	code, text := codes.Unavailable, "" // WEP §6: clients retry with a backoff
	switch {
	case errors.Is(r.Err, workload.ErrNoIdentity):
		// WEP §6, WAPI §5.2.1, §5.2.2: no identity is PermissionDenied, also when all of it is redacted later.
		code, text = codes.PermissionDenied, "no identity is enrolled for this process, which is seen as: "+describe(r.Attestation)
	case errors.Is(r.Err, attest.ErrExited):
		code, text = codes.PermissionDenied, "the process that opened this connection has exited"
	case errors.Is(r.Err, attest.ErrReplaced):
		code, text = codes.PermissionDenied, "the process that opened this connection has replaced its program; connect again"
	case errors.Is(r.Err, attest.ErrMismatch):
		code, text = codes.PermissionDenied, "it cannot be told for certain which process opened this connection"
	case errors.Is(r.Err, workload.ErrUnavailable):
		text = "an identity is enrolled for this process, but no valid SVID or bundle can be had at this moment; retry"
	case errors.Is(r.Err, workload.ErrClosed):
		text = "the agent is shutting down"
	default:
		text = "the facts about this process could not be read; retry"
	}
	return status.Error(code, fmt.Sprintf("%s (reference %s)", text, r.Reference))
}

// maxDescription keeps a refusal within the header sizes that clients accept.
const maxDescription = 1000

// describe lists selectors on one line, the many groups last, and escapes what a process could have put into
// the path of its program.
func describe(att attest.Attestation) string {
	list := slices.Clone(att.Selectors)
	slices.SortStableFunc(list, func(a, b attest.Selector) int {
		return boolToInt(a.Type == attest.UnixGroup) - boolToInt(b.Type == attest.UnixGroup)
	})
	var b strings.Builder
	for i, s := range list {
		text := s.Type + ": " + s.Value
		if quoted := strconv.QuoteToASCII(s.Value); quoted != `"`+s.Value+`"` {
			text = s.Type + ": " + quoted
		}
		if i > 0 {
			text = ", " + text
		}
		if b.Len()+len(text) > maxDescription {
			if i == 0 {
				fmt.Fprintf(&b, "%d facts too long to repeat", len(list))
			} else {
				fmt.Fprintf(&b, ", and %d more", len(list)-i)
			}
			break
		}
		b.WriteString(text)
	}
	fmt.Fprintf(&b, " (%s)", att.Strength)
	return b.String()
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
