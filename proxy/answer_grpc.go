package proxy

import (
	"strconv"
	"strings"

	"github.com/wardmesh/ward/proxy/wire"
)

// spoken gives a refusal in the caller's own protocol. A gRPC client takes any other status than 200 for UNKNOWN or
// worse, and looks for the reason in the trailer: gRPC over HTTP/2, Responses, Trailers-Only. Nothing but FHIR is served,
// so this is all of gRPC that there is. Over HTTP/1.1 there is no gRPC, and a 200 could be taken for success.
func spoken(r *wire.Request, answer *wire.Response, decision string) *wire.Response {
	media, _, _ := strings.Cut(one(r.Header.Values("Content-Type")), ";")
	if sub, ok := strings.CutPrefix(strings.TrimSpace(media), "application/grpc"); !r.H2 || !ok || sub != "" && sub[0] != '+' {
		return answer
	}
	_ = answer.Body.Close()
	return &wire.Response{Status: 200, Length: -1, Close: answer.Close, Header: wire.Header{
		{Name: "Content-Type", Value: "application/grpc"},
		{Name: "Grpc-Status", Value: strconv.Itoa(grpcStatus(answer.Status))},
		{Name: "Grpc-Message", Value: grpcMessage(answer.Status, decision)},
		{Name: HeaderDecision, Value: decision},
	}}
}

// grpcStatus is the one mapping from what a caller is told (faults) to gRPC's status codes.
func grpcStatus(status int) int {
	switch status {
	case 400, 422:
		return 3 // INVALID_ARGUMENT
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404:
		return 5 // NOT_FOUND
	case 405, 415, 501:
		return 12 // UNIMPLEMENTED
	case 408, 504:
		return 4 // DEADLINE_EXCEEDED
	case 413, 429, 431:
		return 8 // RESOURCE_EXHAUSTED
	case 502, 503:
		return 14 // UNAVAILABLE
	}
	return 13 // INTERNAL
}

// grpcMessage is for a person. It says no more than the status does, but where to ask.
func grpcMessage(status int, decision string) string {
	text := "Ward has refused this call."
	if status >= 500 && status != 501 {
		text = "Ward could not serve this call."
	}
	return text + " Decision " + decision + ". " + askOperator + decision
}
