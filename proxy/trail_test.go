package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
)

// silent fails the test when a byte can be read from c now.
func silent(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 512)
	if n, err := c.Read(b); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q, %v", b[:n], err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
}

// awaitWait waits until a call stands before the trail.
func (w *world) awaitWait(t testing.TB) {
	t.Helper()
	select {
	case <-w.trail.waiting:
	case <-time.After(patience):
		t.Fatal("nobody waits for the trail")
	}
}

// attempt is one kind of call, made by the EHR.
type attempt struct {
	name    string
	raw     func(w *world) string
	forward bool // it reaches the FHIR server before the trail is durable
	status  int
}

func attempts() []attempt {
	get := func(line string, changes ...claims) func(*world) string {
		return func(w *world) string { return request(line, "", bearer(w.issuer.token(w, "ehr", changes...))) }
	}
	return []attempt{
		{"read", get("GET /fhir/Observation/1"), true, 200},
		{"confined read", get("GET /fhir/Observation/1", ofPatient("a"), claims{"roles": []string{"physician"}}), true, 200},
		{"search", get("GET /fhir/Observation?code=a"), true, 200},
		{"capabilities", get("GET /fhir/metadata"), true, 200},
		{"delete", get("DELETE /fhir/Observation/1"), false, 204},
		{"create", func(w *world) string {
			return write("POST /fhir/Observation", w.issuer.token(w, "ehr"), newObservation)
		}, false, 201},
		{"update", func(w *world) string {
			return write("PUT /fhir/Observation/1", w.issuer.token(w, "ehr"), observation("1", "a"))
		}, false, 200},
	}
}

// ARCHITECTURE, The two journeys: a reply's first byte waits for the intent, and what changes something waits before
// it is forwarded.
func TestNothingGoesAheadOfTheTrail(t *testing.T) {
	for _, c := range append(attempts(), attempt{"refusal", func(*world) string { return request("GET /fhir/Observation/1", "") }, false, 401}) {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, setup{})
			hold := make(chan struct{})
			w.trail.set(func(l *recorder) { l.hold = hold })
			conn := w.dialIngress(w.ehr.svid.Load())
			raw := c.raw(w)
			if _, err := io.WriteString(conn, raw); err != nil {
				t.Fatal(err)
			}
			w.awaitWait(t)
			silent(t, conn)
			if reached := len(w.upstream.all()) > 0; reached && !c.forward {
				t.Error("it was forwarded before it was recorded durably")
			}
			close(hold)
			if a := read(t, newReader(conn), raw); a.status != c.status {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// An audit trail that fails, whichever way, discloses and changes nothing.
func TestNoTrailNoCall(t *testing.T) {
	const never = "does not answer in time"
	for _, c := range attempts() {
		for failure, set := range map[string]func(*recorder){
			"takes no record":      func(l *recorder) { l.refuse = errDisk },
			"does not get it down": func(l *recorder) { l.fail = errDisk },
			never:                  func(l *recorder) { l.hold = make(chan struct{}) },
		} {
			t.Run(c.name+"/"+failure, func(t *testing.T) {
				var o setup
				if failure == never {
					t.Parallel()
					o.service = endsSoon
				}
				w := newWorld(t, o)
				w.trail.set(set)
				conn, raw := w.dialIngress(w.ehr.svid.Load()), c.raw(w)
				if _, err := io.WriteString(conn, raw); err != nil {
					t.Fatal(err)
				}
				if failure == never {
					w.awaitWait(t) // for the intent, until the call's time is over
					w.awaitWait(t) // for the record of the refusal
					silent(t, conn)
					close(w.trail.hold)
				}
				a := read(t, newReader(conn), raw)
				if a.status != 503 || a.code(t) != "transient" || a.header.Get("Retry-After") == "" || contains(a.body, "Patient/a") {
					t.Errorf("%d %s", a.status, a.body)
				}
				if !c.forward {
					w.upstream.untouched(t)
				}
			})
		}
	}
}

// What the trail says of calls: who, what, and how it ended.
func TestRecordsOfACall(t *testing.T) {
	w := newWorld(t, setup{})
	ehr := w.issuer.token(t, "ehr", claims{"name": "Dr. Lee", "purpose": "TREAT"})
	for name, c := range map[string]struct {
		raw  string
		want proxy.Record // the intent's, as far as it is given
		n    int64        // bytes of the reply's body
	}{
		"read": {request("GET /fhir/Patient/b", "", bearer(ehr)), proxy.Record{Method: "GET", Status: 200, Patients: []string{"b"},
			Interactions: []proxy.Acted{{Kind: "read", Type: "Patient", ID: "b"}}}, int64(len(`{"resourceType":"Patient","id":"b"}`))},
		"search": {request("GET /fhir/Observation?code=SECRET", "", bearer(ehr)), proxy.Record{Method: "GET", Status: 200, Patients: []string{"a"},
			Interactions: []proxy.Acted{{Kind: "search", Type: "Observation", Params: []string{"code"}}}}, int64(len(searchset(observation("1", "a"))))},
		"update": {write("PUT /fhir/Observation/2", ehr, observation("2", "b")), proxy.Record{Method: "PUT", Status: 200, Patients: []string{"b"},
			Interactions: []proxy.Acted{{Kind: "update", Type: "Observation", ID: "2"}}}, int64(len(observation("2", "b")))},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.call(w.ehr, c.raw)
			mine := func(r *proxy.Record) bool { return r.Decision == a.decision() }
			records := w.trail.await(t, 2, mine)
			intent, outcome := records[0], records[1]
			if intent.Stage != proxy.StageIntent || outcome.Stage != proxy.StageOutcome || len(records) != 2 {
				t.Fatalf("%s", toJSON(records))
			}
			for _, r := range records {
				if r.Schema != proxy.RecordSchema || r.Hop != proxy.HopIngress || r.Service != serviceName || r.Caller != w.ehr.id.String() ||
					r.Issuer != issuerURL || r.Client != "ehr" || r.User != "dr.lee" || r.Name != "Dr. Lee" || r.TokenID != "t-1" ||
					r.Purpose != "TREAT" || r.Effect != "allow" || r.Cause != "" || r.Method != c.want.Method || r.PolicySet == "" ||
					toJSON(r.Interactions) != toJSON(c.want.Interactions) || !slices.Equal(r.Patients, c.want.Patients) {
					t.Errorf("%s", toJSON(r))
				}
			}
			if len(intent.Inputs) == 0 || len(outcome.Inputs) > 0 {
				t.Error("the decision's inputs stand in the intent, and only there")
			}
			if outcome.Status != c.want.Status || outcome.Bytes != c.n || !outcome.Complete {
				t.Errorf("outcome %s, want %d bytes", toJSON(outcome), c.n)
			}
			// The two wards' records of one call name each other.
			out := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Stage == proxy.StageEgress && r.Peer == a.decision() })[0]
			if intent.Peer != out.Decision || out.Caller != intent.Caller || out.Process != "pid 42, uid 1000" || out.Status != c.want.Status ||
				out.Bytes != c.n || !out.Complete {
				t.Errorf("egress %s", toJSON(out))
			}
		})
	}
}

// A decision id that is not one, or several, is not recorded as the other ward's.
func TestForgedPeerDecisionIsNotRecorded(t *testing.T) {
	w := newWorld(t, setup{})
	for _, fields := range [][]string{{"Ward-Decision: forged"}, {"Ward-Decision: " + someDecision, "Ward-Decision: " + someDecision}} {
		a := send(t, w.dialIngress(w.ehr.svid.Load()), request("GET /fhir/metadata", "", fields...))
		if r := w.trail.of(proxy.HopIngress, a.decision()); len(r) == 0 || r[0].Peer != "" {
			t.Errorf("%q: %s", fields, toJSON(r))
		}
	}
}

// The log on the disk has every answered call, each once, and holds no token, no query value and no body.
func TestLogIsWholeAndDiscreet(t *testing.T) {
	const secret = "Zebra4711"
	w := newWorld(t, setup{})
	token := w.issuer.token(t, "ehr")
	patient := `{"resourceType":"Patient","id":"p","name":[{"family":"` + secret + `"}]}`
	w.upstream.says(func(r *received) string {
		if contains(r.line, "name=") {
			return reply(200, searchset(patient))
		}
		return reply(200, patient)
	})
	answers := map[string]int{}
	for _, raw := range []string{
		request("GET /fhir/Patient?name="+secret, "", bearer(token)),
		write("PUT /fhir/Patient/p", token, patient),
		request("GET /fhir/Patient/p", "", bearer(token)),
		request("GET /fhir/Patient/p?secret="+secret, "", bearer(token)),
		request("GET /fhir/"+secret+"/p", "", bearer(token)),
		request(secret+" /fhir/Patient/p", "", bearer(token)),
		request("GET /fhir/Account/"+secret, "", bearer(token)),
		write("PUT /fhir/Patient/p", token, `{"resourceType":"`+secret+`"`),
		request("GET /fhir/Patient/p", "", bearer(token[:len(token)-9])),
	} {
		a := w.call(w.ehr, raw)
		answers[a.decision()]++
	}
	w.trail.await(t, 3, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome })
	if err := w.trail.log.Close(); err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.LoadVerifier(audit.PublicFile(w.trail.dir))
	if err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(t.Context(), w.trail.dir, verifier)
	if err != nil || len(report.Presumed) > 0 {
		t.Errorf("%+v %v", report, err)
	}
	answered := map[string]int{}
	for e, err := range audit.Scan(t.Context(), w.trail.dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Hop == proxy.HopIngress && e.Record.Stage != proxy.StageIntent {
			answered[e.Record.Decision]++
		}
	}
	for id := range answers {
		if answered[id] != 1 {
			t.Errorf("%d final records for call %q", answered[id], id)
		}
	}
	if len(answered) != len(answers) {
		t.Errorf("%d calls in the log, %d answered", len(answered), len(answers))
	}
	files, err := filepath.Glob(filepath.Join(w.trail.dir, "*.log"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{secret, token, token[len(token)-40:]} {
			if i := bytes.Index(content, []byte(s)); i >= 0 && !contains(string(content[max(0, i-20):i]), `"id":"`) {
				t.Errorf("the log holds %q: …%s…", s, content[max(0, i-80):i+20])
			}
		}
	}
}
