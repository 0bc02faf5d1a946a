package proxy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

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

// spell appends what spelling gives.
func spell(b []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= utf8.RuneSelf:
			return append(b[:len(b)-i], spelling(name)...)
		case c == '_':
			c = '-'
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// claimsIdentity reports whether a field, in any spelling, tells a server who is calling, or makes it see another
// request than the one that was decided on. Nobody but a ward may set these.
func claimsIdentity(name string) bool {
	var room [64]byte
	n := spell(room[:0], name)
	for _, p := range [...]string{"ward-", "x-forwarded", "x-authorization-", "x-patient", "x-user", "x-remote-", "x-client-",
		"x-ssl-", "ssl-client", "x-auth-", "x-original-", "x-rewrite-", "x-envoy-", "x-amzn-", "x-ms-client-", "workload-identity", "workload-proof"} {
		if len(n) >= len(p) && string(n[:len(p)]) == p {
			return true
		}
	}
	switch string(n) {
	case "forwarded", "via", "x-real-ip", "remote-user", "client-cert", "client-cert-chain", "true-client-ip", "cf-connecting-ip",
		"x-http-method-override", "x-http-method", "x-method-override", "x-spiffe-id", "from", "proxy-authorization":
		return true
	}
	return false
}

// connectionNames gives the names that Connection fields list.
func connectionNames(h wire.Header) []string {
	var out []string
	for i := range h {
		if !strings.EqualFold(h[i].Name, "Connection") {
			continue
		}
		for n := range strings.SplitSeq(h[i].Value, ",") {
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
	if h.Has("Upgrade") {
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

// endToEnd appends to out the fields of h that are not the hop's own: neither such by name nor by a Connection field.
// Out may be h's own beginning.
func endToEnd(out, h wire.Header) wire.Header {
	return keep(out, h, func(wire.Field) bool { return true })
}

// passOn appends to out the fields of h that egress forwards: those that are end to end and claim no identity. Names that
// are not RFC 9110 tokens do not reach this far.
func passOn(out, h wire.Header) wire.Header {
	return keep(out, h, func(f wire.Field) bool { return !claimsIdentity(f.Name) })
}

// keep appends to out the fields of h that are end to end and that more lets through.
func keep(out, h wire.Header, more func(wire.Field) bool) wire.Header {
	var named map[string]bool
	for _, n := range connectionNames(h) {
		if named == nil {
			named = map[string]bool{}
		}
		named[spelling(n)] = true
	}
	for _, f := range h {
		if !wire.HopByHop(f.Name) && (named == nil || !named[spelling(f.Name)]) && more(f) {
			out = append(out, f)
		}
	}
	return out
}

// values appends to out the value of every occurrence of name in h.
func values(out []string, h wire.Header, name string) []string {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			out = append(out, h[i].Value)
		}
	}
	return out
}

// sole is the value of the field that occurs exactly once in h, "" of any other.
func sole(h wire.Header, name string) string {
	at := -1
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			if at >= 0 {
				return ""
			}
			at = i
		}
	}
	if at < 0 {
		return ""
	}
	return h[at].Value
}

// upstreamHeader builds what the FHIR server gets. It is an allow-list: FHIR servers act on fields that no gateway
// knows (cascading deletes, version retries, header overrides of the method), so what is not understood is not sent.
//
// It appends to out. client says which certificate the caller has shown, in Envoy's form; "" leaves it out.
func upstreamHeader(out wire.Header, f *Facts, in *fhir.Interaction, h wire.Header, client string) wire.Header {
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
	var preferences [2]string
	add("Prefer", prefer(in.Kind, values(preferences[:0], h, "Prefer")))
	switch {
	case in.Form:
		add("Content-Type", "application/x-www-form-urlencoded")
	case in.Kind == fhir.Create || in.Kind == fhir.Update:
		add("Content-Type", "application/fhir+json")
	}
	add(HeaderXFCC, client)
	add(HeaderCaller, f.Caller.String())
	if f.User != nil {
		var room [256]byte
		b := appendSFString(append(room[:0], "iss="...), f.User.Issuer)
		add(HeaderUser, string(appendSFString(append(b, ", sub="...), f.User.Subject)))
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
	if kind == fhir.Search && len(values) == 0 {
		return "handling=strict"
	}
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

// appendSFString writes s as an RFC 8941 string, or as a byte sequence when it is not printable ASCII.
func appendSFString(b []byte, s string) []byte {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			b = base64.StdEncoding.AppendEncode(append(b, ':'), []byte(s))
			return append(b, ':')
		}
	}
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '\\' || s[i] == '"' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// xfcc is what the FHIR server reads about a connection's certificate.
type xfcc struct {
	by    spiffeid.ID // the ward that says it
	value string
}

// certificate is what by says of the certificate that p has shown, in Envoy's format; a SPIFFE ID has no character that
// would need quoting in it. It is made once for a connection.
func (p *Peer) certificate(by spiffeid.ID) string {
	if made := p.told.Load(); made != nil && made.by == by {
		return made.value
	}
	sum := sha256.Sum256(p.Leaf.Raw)
	made := &xfcc{by, "By=" + by.String() + ";Hash=" + hex.EncodeToString(sum[:]) + ";URI=" + p.ID.String()}
	p.told.Store(made)
	return made.value
}

// isReplyField reports whether a caller gets a field of this name from the FHIR server's header.
func isReplyField(name string) bool {
	for _, n := range [...]string{"content-type", "etag", "last-modified", "date", "cache-control", "expires", "vary", "retry-after",
		"x-request-id", "content-language", "allow", "accept-patch", "www-authenticate"} {
		if len(n) == len(name) && strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// callerHeader builds what the caller gets of a reply's header, appended to out. Location is passed only when it is a path
// of this service: it names what was created.
func callerHeader(out wire.Header, f *Facts, s *Service, h wire.Header) wire.Header {
	for _, fld := range h {
		switch {
		case isReplyField(fld.Name):
			out = append(out, fld)
		case strings.EqualFold(fld.Name, "location") || strings.EqualFold(fld.Name, "content-location"):
			if l, ok := localLocation(s, fld.Value); ok {
				out = append(out, wire.Field{Name: fld.Name, Value: l})
			}
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
