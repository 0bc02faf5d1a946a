package broker

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/oklog/ulid/v2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// cause is the word for why a broker gets nothing, in the metadata of the error's google.rpc.ErrorInfo.
type cause string

const (
	badReference cause = "reference"
	exited       cause = "exited"
	replaced     cause = "replaced"
	mismatch     cause = "mismatch"
	noIdentity   cause = "no-identity"
	denied       cause = "denied"
	notBroker    cause = "not-a-broker"
	unavailable  cause = "unavailable"
	closed       cause = "closed"
)

// ErrorInfo: BA §4.8 names the domain and the reasons of its own; what the API has no reason for is in Ward's domain.
const (
	spiffeDomain = "spiffe.io"
	wardDomain   = "ward.broker.v1"
	causeKey     = "cause"
	referenceKey = "reference"
)

var errDenied = fmt.Errorf("%w; otherwise %w", workload.ErrDenied, workload.ErrNoIdentity)

// verdict is one row of the one mapping between errors and the wire, read in both directions.
type verdict struct {
	err    error
	cause  cause
	code   codes.Code
	domain string
	reason string
	text   string
}

// verdicts is in the order in which an error that is several is told.
func verdicts() []verdict {
	return []verdict{
		// BE §6: clients that are not authorized observe PermissionDenied.
		{workload.ErrNotBroker, notBroker, codes.PermissionDenied, wardDomain, "BROKER_NOT_ALLOWED", "this process may not borrow the identities of others"},
		// BA §4.8, the table.
		{attest.ErrReference, badReference, codes.InvalidArgument, spiffeDomain, "WORKLOAD_REFERENCE_INVALID", "the workload reference is refused"},
		{attest.ErrExited, exited, codes.NotFound, spiffeDomain, "WORKLOAD_NOT_FOUND", "the process has exited"},
		{attest.ErrReplaced, replaced, codes.PermissionDenied, spiffeDomain, "WORKLOAD_NOT_ENTITLED", "the process has replaced its program"},
		{attest.ErrMismatch, mismatch, codes.PermissionDenied, spiffeDomain, "WORKLOAD_NOT_ENTITLED", "it cannot be told for certain which process is meant"},
		{errDenied, denied, codes.PermissionDenied, spiffeDomain, "WORKLOAD_NOT_ENTITLED", "the workload's SPIFFE ID is on the deny list"},
		{workload.ErrDenied, denied, codes.PermissionDenied, spiffeDomain, "WORKLOAD_NOT_ENTITLED", "the workload's SPIFFE ID is on the deny list"},
		{workload.ErrNoIdentity, noIdentity, codes.PermissionDenied, spiffeDomain, "WORKLOAD_NOT_ENTITLED", "no entry with proxy: true is meant for the process"},
		// BE §6: Unavailable while initializing or shedding load.
		{workload.ErrClosed, closed, codes.Unavailable, wardDomain, "UNAVAILABLE", "the agent is shutting down"},
		{workload.ErrUnavailable, unavailable, codes.Unavailable, wardDomain, "UNAVAILABLE", "no valid SVID or bundle can be had at this moment; retry"},
	}
}

// unread is the verdict over every other error: the facts could not be read.
func unread() verdict {
	return verdict{workload.ErrUnavailable, unavailable, codes.Unavailable, wardDomain, "UNAVAILABLE", "the facts about the process could not be read; retry"}
}

func verdictOn(err error) verdict {
	for _, v := range verdicts() {
		if errors.Is(err, v.err) {
			return v
		}
	}
	return unread()
}

// statusOf is what a broker is told. The text is for its operator; programs read the code and the ErrorInfo.
func statusOf(err error) error {
	var r *workload.Refusal
	if !errors.As(err, &r) {
		if s := status.FromContextError(err); s.Code() != codes.Unknown {
			return s.Err()
		}
		return err // from Send: a status already
	}
	v := verdictOn(r.Err)
	text := v.text
	switch v.cause {
	case badReference:
		text = r.Err.Error() // it holds nothing that the broker has not sent
	case noIdentity:
		text += ", which is seen as " + seenAs(r.Attestation)
	}
	s := status.New(v.code, fmt.Sprintf("%s (reference %s)", text, r.Reference))
	detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: v.reason, Domain: v.domain,
		Metadata: map[string]string{causeKey: string(v.cause), referenceKey: r.Reference}})
	if err != nil {
		return s.Err() // BA §4.8: clients MUST handle cases where only the status code is available
	}
	return detailed.Err()
}

// maxDescription keeps a refusal within the header sizes that clients accept.
const maxDescription = 1000

// seenAs escapes what a process could have put into the path of its program.
func seenAs(att attest.Attestation) string {
	text := att.Selectors.String()
	if quoted := strconv.QuoteToASCII(text); quoted != `"`+text+`"` {
		text = quoted
	}
	if len(text) > maxDescription {
		text = text[:maxDescription] + "…"
	}
	return text
}

// refusalOf reads what the server said. The result is a *workload.Refusal whose error is, by errors.Is, the same as on
// the server's side. Of a server that gives no details the code has to do.
func refusalOf(err error) *workload.Refusal {
	s := status.Convert(err)
	r := &workload.Refusal{Err: fmt.Errorf("%w: %s", byCode(s.Code()), s.Message())}
	for _, d := range s.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != spiffeDomain && info.GetDomain() != wardDomain {
			continue
		}
		if id, err := ulid.ParseStrict(info.GetMetadata()[referenceKey]); err == nil {
			r.Reference = id.String()
		}
		for _, v := range verdicts() {
			// A cause never says more than the code: what is Unavailable is retried, whatever else it says.
			if string(v.cause) == info.GetMetadata()[causeKey] && v.code == s.Code() {
				r.Err = fmt.Errorf("%w: the agent says: %s", v.err, s.Message())
				return r
			}
		}
	}
	return r
}

func byCode(c codes.Code) error {
	switch c {
	case codes.PermissionDenied:
		return workload.ErrNoIdentity
	case codes.NotFound:
		return attest.ErrExited
	case codes.InvalidArgument:
		return attest.ErrReference
	case codes.Unauthenticated, codes.Unimplemented:
		return workload.ErrNotBroker
	}
	return workload.ErrUnavailable
}

// final reports whether asking again is no use: BE §6, BA §4.8.
func final(r *workload.Refusal) bool {
	return !errors.Is(r, workload.ErrUnavailable) && !errors.Is(r, workload.ErrClosed)
}
