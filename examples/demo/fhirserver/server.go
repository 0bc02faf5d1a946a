// Package fhirserver is a small FHIR R4 server for demonstrations: real resources, kept in memory, with versions.
//
// It serves read, vread, history of an instance, search by _id and by references, create, update and delete, and
// trusts everybody who reaches it: that is the point. It stands for the FHIR server that a hospital already has, and
// Ward stands before it. It keeps what Ward told it about each call's origin (Seen), so that a demonstration can show
// what a server gets to see of the caller.
//
// The resources in hl7.ndjson are HL7's own R4 examples (CC0).
package fhirserver

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed hl7.ndjson
var examples []byte

// Server is a FHIR server. It is an http.Handler.
type Server struct {
	mux *http.ServeMux
	now func() time.Time

	mu        sync.Mutex
	resources map[string][]version // by `Type/id`, oldest first
	next      int
	seen      map[string]http.Header // by Ward-Decision, the latest few
	order     []string
}

type version struct {
	at      time.Time
	body    map[string]any
	deleted bool
}

// New makes a server that holds HL7's examples.
func New(now func() time.Time) (*Server, error) {
	s := &Server{now: now, resources: map[string][]version{}, seen: map[string]http.Header{}}
	lines := bufio.NewScanner(bytes.NewReader(examples))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r map[string]any
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("examples: %w", err)
		}
		s.put(fmt.Sprint(r["resourceType"], "/", r["id"]), r)
	}
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("GET /metadata", s.metadata)
	s.mux.HandleFunc("GET /{type}", s.search)
	s.mux.HandleFunc("POST /{type}/_search", s.search)
	s.mux.HandleFunc("POST /{type}", s.create)
	s.mux.HandleFunc("GET /{type}/{id}", s.read)
	s.mux.HandleFunc("PUT /{type}/{id}", s.update)
	s.mux.HandleFunc("DELETE /{type}/{id}", s.delete)
	s.mux.HandleFunc("GET /{type}/{id}/_history", s.history)
	s.mux.HandleFunc("GET /{type}/{id}/_history/{version}", s.vread)
	return s, lines.Err()
}

// Len is the number of resources held.
func (s *Server) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.resources)
}

// Seen gives the header of the call with this decision id, as it arrived here.
func (s *Server) Seen(decision string) http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[decision]
}

const remembered = 1000

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if id := r.Header.Get("Ward-Decision"); id != "" {
		s.mu.Lock()
		if len(s.order) == remembered {
			delete(s.seen, s.order[0])
			s.order = s.order[1:]
		}
		s.seen[id], s.order = r.Header.Clone(), append(s.order, id)
		s.mu.Unlock()
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) put(key string, body map[string]any) version {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := version{at: s.now().UTC(), body: body}
	body["meta"] = map[string]any{"versionId": strconv.Itoa(len(s.resources[key]) + 1), "lastUpdated": v.at.Format(time.RFC3339Nano)}
	s.resources[key] = append(s.resources[key], v)
	return v
}

// versions gives a resource's versions, or answers 404.
func (s *Server) versions(w http.ResponseWriter, r *http.Request) []version {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.resources[r.PathValue("type")+"/"+r.PathValue("id")]
	if v == nil {
		outcome(w, http.StatusNotFound, "not-found")
	}
	return v
}

func (s *Server) read(w http.ResponseWriter, r *http.Request) {
	if v := s.versions(w, r); v != nil {
		write(w, http.StatusOK, v[len(v)-1], pace(r))
	}
}

func (s *Server) vread(w http.ResponseWriter, r *http.Request) {
	v := s.versions(w, r)
	if v == nil {
		return
	}
	if n, err := strconv.Atoi(r.PathValue("version")); err == nil && n >= 1 && n <= len(v) {
		write(w, http.StatusOK, v[n-1], 0)
		return
	}
	outcome(w, http.StatusNotFound, "not-found")
}

func (s *Server) history(w http.ResponseWriter, r *http.Request) {
	v := s.versions(w, r)
	if v == nil {
		return
	}
	var entries []any
	for _, e := range slices.Backward(v) {
		item := map[string]any{"request": map[string]any{"method": "PUT", "url": r.PathValue("type") + "/" + r.PathValue("id")}, "response": map[string]any{"status": "200"}}
		if !e.deleted {
			item["resource"] = e.body
		}
		entries = append(entries, item)
	}
	write(w, http.StatusOK, version{at: s.now(), body: map[string]any{"resourceType": "Bundle", "type": "history", "total": len(entries), "entry": entries}}, 0)
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	body, ok := decode(w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	s.next++
	id := fmt.Sprintf("ward-%d", s.next)
	s.mu.Unlock()
	body["id"] = id
	v := s.put(r.PathValue("type")+"/"+id, body)
	w.Header().Set("Location", "http://"+r.Host+"/"+r.PathValue("type")+"/"+id+"/_history/1")
	write(w, http.StatusCreated, v, 0)
}

func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	body, ok := decode(w, r)
	if !ok {
		return
	}
	body["id"] = r.PathValue("id")
	write(w, http.StatusOK, s.put(r.PathValue("type")+"/"+r.PathValue("id"), body), 0)
}

func (s *Server) delete(w http.ResponseWriter, r *http.Request) {
	if v := s.versions(w, r); v != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		key := r.PathValue("type") + "/" + r.PathValue("id")
		s.resources[key] = append(v, version{at: s.now(), body: v[len(v)-1].body, deleted: true})
		w.WriteHeader(http.StatusNoContent)
	}
}

// search knows _id, _count, and parameters that name an element: `subject`, `code`, and `patient` for the
// element that refers to one. What it does not know it ignores, as many servers do.
func (s *Server) search(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		outcome(w, http.StatusBadRequest, "structure")
		return
	}
	typ := r.PathValue("type") + "/"
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := []any{}
	total := 0
	for _, key := range slices.Sorted(maps.Keys(s.resources)) {
		v := s.resources[key]
		last := v[len(v)-1]
		if !strings.HasPrefix(key, typ) || last.deleted || !matches(last.body, r.Form) {
			continue
		}
		total++
		if n, err := strconv.Atoi(r.Form.Get("_count")); err == nil && len(entries) >= n {
			continue
		}
		entries = append(entries, map[string]any{"fullUrl": "http://" + r.Host + "/" + key, "resource": last.body, "search": map[string]any{"mode": "match"}})
	}
	write(w, http.StatusOK, version{at: s.now(), body: map[string]any{"resourceType": "Bundle", "type": "searchset", "total": total, "entry": entries}}, 0)
}

func matches(body map[string]any, form map[string][]string) bool {
	for name, values := range form {
		for _, value := range values {
			ok := slices.ContainsFunc(strings.Split(value, ","), func(v string) bool { return matchesOne(body, name, v) })
			if !ok {
				return false
			}
		}
	}
	return true
}

func matchesOne(body map[string]any, name, want string) bool {
	switch name {
	case "_id":
		return body["id"] == want
	case "patient":
		want = "Patient/" + strings.TrimPrefix(want, "Patient/")
		return refers(body["subject"], want) || refers(body["patient"], want)
	case "subject":
		return refers(body[name], want)
	case "code":
		_, code, found := strings.Cut(want, "|")
		if !found {
			code = want
		}
		text, _ := json.Marshal(body["code"])
		return bytes.Contains(text, []byte(`"code":"`+code+`"`))
	}
	return true
}

func refers(element any, want string) bool {
	m, _ := element.(map[string]any)
	return m["reference"] == want
}

func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, version{at: s.now(), body: map[string]any{"resourceType": "CapabilityStatement", "status": "active", "date": "2026-11-01",
		"kind": "instance", "fhirVersion": "4.0.1", "format": []string{"json"}}}, 0)
}

func decode(w http.ResponseWriter, r *http.Request) (map[string]any, bool) {
	var body map[string]any
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<20)).Decode(&body); err != nil || body["resourceType"] != r.PathValue("type") {
		outcome(w, http.StatusBadRequest, "invalid")
		return nil, false
	}
	return body, true
}

// pace is how long a client asks its answer to be spread over, so that a demonstration can have a long reply.
func pace(r *http.Request) time.Duration {
	d, _ := time.ParseDuration(strings.TrimPrefix(r.Header.Get("User-Agent"), "slow-reader/"))
	return min(d, 30*time.Second)
}

func write(w http.ResponseWriter, status int, v version, over time.Duration) {
	if v.deleted {
		outcome(w, http.StatusGone, "deleted")
		return
	}
	b, err := json.Marshal(v.body)
	if err != nil {
		outcome(w, http.StatusInternalServerError, "exception")
		return
	}
	w.Header().Set("Content-Type", "application/fhir+json; charset=utf-8")
	if meta, ok := v.body["meta"].(map[string]any); ok {
		w.Header().Set("ETag", fmt.Sprintf(`W/"%s"`, meta["versionId"]))
		w.Header().Set("Last-Modified", v.at.UTC().Format(http.TimeFormat))
	}
	w.WriteHeader(status)
	if over == 0 {
		_, _ = w.Write(b)
		return
	}
	const pieces = 20
	for tick := time.NewTicker(over / pieces); len(b) > 0; {
		n := min(len(b), len(b)/pieces+64)
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
		_ = http.NewResponseController(w).Flush()
		<-tick.C
	}
}

func outcome(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/fhir+json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"`+code+`"}]}`)
}
