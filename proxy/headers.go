package proxy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/wire"
)

// Field names that Ward writes. INTERFACE: what the FHIR server reads about the caller.
const (
	HeaderXFCC     = "X-Forwarded-Client-Cert"
	HeaderCaller   = "Ward-Caller"
	HeaderUser     = "Ward-User"
	HeaderPurpose  = "Ward-Purpose"
	HeaderDecision = "Ward-Decision"
)

// spelling folds the spellings under which servers take two field names for one: CGI and WSGI turn both `-` and
// `_` into `_`, and some drop case.
func spelling(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

// claimsIdentity reports whether a field, in any spelling, tells a server who is calling, or makes it see another
// request than the one that was decided on. Nobody but a ward may set these.
func claimsIdentity(name string) bool {
	n := spelling(name)
	for _, p := range [...]string{"ward-", "x-forwarded", "x-authorization-", "x-patient", "x-user", "x-remote-", "x-client-",
		"x-ssl-", "ssl-client", "x-auth-", "x-original-", "x-rewrite-", "x-envoy-", "x-amzn-", "x-ms-client-", "workload-identity", "workload-proof"} {
		if strings.HasPrefix(n, p) {
			return true
		}
	}
	switch n {
	case "forwarded", "via", "x-real-ip", "remote-user", "client-cert", "client-cert-chain", "true-client-ip", "cf-connecting-ip",
		"x-http-method-override", "x-http-method", "x-method-override", "x-spiffe-id", "from", "proxy-authorization":
		return true
	}
	return false
}

// connectionNames gives the names that Connection fields list.
func connectionNames(h wire.Header) []string {
	var out []string
	for _, v := range h.Values("Connection") {
		for n := range strings.SplitSeq(v, ",") {
			if n = strings.TrimSpace(n); n != "" {
				out = append(out, n)
			}
		}
	}
	return out
}

// checkHop refuses the fields by which a client would change what a hop makes of its request: Connection fields that ask
// for the removal of what decides the call (a hop that obeyed would forward another request than the one it
// authenticated), and every Upgrade (what came after it would be decided on by nobody).
func checkHop(h wire.Header) error {
	for _, n := range connectionNames(h) {
		if s := spelling(n); decides(s) || claimsIdentity(n) {
			return misplaced("Connection", "it names a field that every hop needs", "the Connection field names "+strconv.Quote(s))
		}
	}
	if v := h.Values("Upgrade"); len(v) > 0 {
		return misplaced("Upgrade", "there is no other protocol here than HTTP/1.1", "the request asks for an upgrade")
	}
	return nil
}

// decides reports whether a field, spelled as spelling does, can make another request of a request.
func decides(s string) bool {
	return s == "authorization" || s == "host" || s == "prefer" || strings.HasPrefix(s, "content-") || strings.HasPrefix(s, "if-")
}

// misplaced refuses a field; text, but not detail, is told to the caller.
func misplaced(name, text, detail string) error {
	return &Refusal{Cause: CauseHeaders, Detail: detail, Err: &fhir.Error{Class: fhir.Malformed, Text: text, Expression: name}}
}

// endToEnd gives the fields of h that are not the hop's own: neither such by name nor by a Connection field.
func endToEnd(h wire.Header) wire.Header {
	var named map[string]bool
	for _, n := range connectionNames(h) {
		if named == nil {
			named = map[string]bool{}
		}
		named[spelling(n)] = true
	}
	out := make(wire.Header, 0, len(h)+1)
	for _, f := range h {
		if !wire.HopByHop(f.Name) && !named[spelling(f.Name)] {
			out = append(out, f)
		}
	}
	return out
}

// passOn gives the fields of h that egress forwards: those that are end to end and claim no identity. Names that are
// not RFC 9110 tokens do not reach this far.
func passOn(h wire.Header) wire.Header {
	return slices.DeleteFunc(endToEnd(h), func(f wire.Field) bool { return claimsIdentity(f.Name) })
}

// upstreamHeader builds what the FHIR server gets. It is an allow-list: FHIR servers act on fields that no gateway
// knows (cascading deletes, version retries, header overrides of the method), so what is not understood is not sent.
func upstreamHeader(f *Facts, in fhir.Interaction, h wire.Header, client *x509.Certificate) wire.Header {
	out := make(wire.Header, 0, 16)
	add := func(name, value string) {
		if value != "" {
			out = append(out, wire.Field{Name: name, Value: value})
		}
	}
	add("Accept", "application/fhir+json")
	add("Accept-Encoding", "identity")
	add("Authorization", h.Get("Authorization"))
	for _, name := range [...]string{"User-Agent", "X-Request-Id", "Traceparent", "Tracestate", "Accept-Language"} {
		add(name, h.Get(name))
	}
	add("If-Match", h.Get("If-Match"))
	if !f.Grant.Confined {
		// A conditional read answers a question about a resource that the caller may not be allowed to know.
		add("If-None-Match", h.Get("If-None-Match"))
		add("If-Modified-Since", h.Get("If-Modified-Since"))
	}
	add("Prefer", prefer(in.Kind, h.Values("Prefer")))
	switch {
	case in.Form:
		add("Content-Type", "application/x-www-form-urlencoded")
	case in.Kind == fhir.Create || in.Kind == fhir.Update:
		add("Content-Type", "application/fhir+json")
	}
	if client != nil {
		sum := sha256.Sum256(client.Raw)
		// Envoy's format; a SPIFFE ID has no character that would need quoting in it.
		add(HeaderXFCC, "By="+f.Self.String()+";Hash="+hex.EncodeToString(sum[:])+";URI="+f.Caller.String())
	}
	add(HeaderCaller, f.Caller.String())
	if f.User != nil {
		add(HeaderUser, "iss="+sfString(f.User.Issuer)+", sub="+sfString(f.User.Subject))
	}
	add(HeaderPurpose, f.Purpose)
	add(HeaderDecision, f.Decision)
	return out
}

// prefer keeps the preferences that change only the form of the answer (R4 http.html#ops), never respond-async, which
// would change the interaction. What is to be returned is a write's to say: a read that was answered without the
// resource could not be judged. A search is always strict (R4 search.html#errors): a server that ignores a parameter
// which it does not know answers more than was asked for and decided on.
func prefer(kind fhir.Kind, values []string) string {
	var keep []string
	if kind == fhir.Search {
		keep = append(keep, "handling=strict")
	}
	for _, v := range values {
		for p := range strings.SplitSeq(v, ",") {
			p = strings.TrimSpace(p)
			switch p {
			case "return=minimal", "return=representation", "return=OperationOutcome":
				if !kind.Writes() {
					continue
				}
			case "handling=strict":
			default:
				continue
			}
			if !slices.Contains(keep, p) {
				keep = append(keep, p)
			}
		}
	}
	return strings.Join(keep, ", ")
}

// sfString writes s as an RFC 8941 string, or as a byte sequence when it is not printable ASCII.
func sfString(s string) string {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return ":" + base64.StdEncoding.EncodeToString([]byte(s)) + ":"
		}
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// replyFields are what a caller gets of the FHIR server's header.
var replyFields = map[string]bool{"content-type": true, "etag": true, "last-modified": true, "date": true, "cache-control": true,
	"expires": true, "vary": true, "retry-after": true, "x-request-id": true, "content-language": true, "allow": true, "accept-patch": true}

// callerHeader builds what the caller gets of a reply's header. Location is passed only when it is a path of this
// service: it names what was created.
func callerHeader(f *Facts, s *Service, h wire.Header) wire.Header {
	out := make(wire.Header, 0, len(h)+1)
	for _, fld := range h {
		n := strings.ToLower(fld.Name)
		switch {
		case replyFields[n]:
			out = append(out, fld)
		case n == "location" || n == "content-location":
			if l, ok := localLocation(s, fld.Value); ok {
				out = append(out, wire.Field{Name: fld.Name, Value: l})
			}
		case n == "www-authenticate":
			out = append(out, fld)
		}
	}
	return append(out, wire.Field{Name: HeaderDecision, Value: f.Decision})
}

// localLocation accepts a Location that is relative, or absolute on the service's own name, below its base and of
// the form Type/id[/_history/version]; it gives it back absolute on the mesh name.
func localLocation(s *Service, v string) (string, bool) {
	rest := v
	if r, ok := strings.CutPrefix(rest, "http://"+s.Name); ok {
		rest = r
		if _, after, ok := strings.Cut(rest, "/"); ok && strings.HasPrefix(rest, ":") {
			rest = "/" + after
		}
	} else if strings.Contains(rest, "://") {
		return "", false
	}
	rest = strings.TrimPrefix(strings.TrimPrefix(rest, s.Base), "/")
	parts := strings.Split(rest, "/")
	if len(parts) != 2 && !(len(parts) == 4 && parts[2] == "_history" && fhir.IsID(parts[3])) {
		return "", false
	}
	if !fhir.IsType(parts[0]) || !fhir.IsID(parts[1]) {
		return "", false
	}
	return "http://" + s.Name + s.Base + "/" + rest, true
}
