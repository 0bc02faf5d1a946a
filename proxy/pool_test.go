package proxy_test

import (
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/wardmesh/ward/proxy"
)

func serial(svid *x509svid.SVID) string { return svid.Certificates[0].SerialNumber.String() }

// A connection between wards is one identity's: reused by its own process, never by another, not even by one that runs
// as the same workload.
func TestPoolIsNeverShared(t *testing.T) {
	w := newWorld(t, setup{})
	next := w.nextWard(w.self.svid.Load())
	twin := w.process("/app/portal")
	raw := request("GET /fhir/Patient/a", "")
	const rounds = 8
	for range rounds {
		for _, p := range []*process{w.portal, w.ehr, twin} {
			if a := w.call(p, raw); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
	}
	owner, conns := map[int]string{}, map[string]int{}
	for i, r := range next.all() {
		if want := serial([]*process{w.portal, w.ehr, twin}[i%3].svid.Load()); r.peer != want {
			t.Errorf("call %d went out under certificate %s, not its caller's %s", i, r.peer, want)
		}
		if o, ok := owner[r.conn]; ok && o != r.peer {
			t.Error("two identities on one connection")
		} else if !ok {
			conns[r.peer]++
		}
		owner[r.conn] = r.peer
	}
	for peer, n := range conns {
		// The engine puts a connection back a moment after the reply has been read, so the next call may miss one.
		if n >= rounds {
			t.Errorf("%s opened %d connections for %d calls one after the other: none was used again", peer, n, rounds)
		}
	}
}

// An SVID that rotates starts a new generation of connections; what runs on the old one goes on undisturbed.
func TestRotationUnderAStream(t *testing.T) {
	w := newWorld(t, setup{})
	server := w.upstream.chunks(t)
	stream := w.stream(w.portal, request("GET /fhir/Observation/1", "", bearer(w.token())))
	server.says("one")
	stream.want("one")

	was := w.portal.svid.Load()
	w.upstream.says(fhirReply) // from the next request on
	now := w.ca.issue(t, "/app/portal", issuedAgo(0))
	w.portal.svid.Store(now)
	w.self.svid.Store(w.ca.issue(t, "/ward/ehr", issuedAgo(0)))
	a := w.call(w.portal, request("GET /fhir/Patient/a", "", bearer(w.token())))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	requests := w.upstream.all()
	if old, renewed := requests[0].field("X-Forwarded-Client-Cert"), requests[1].field("X-Forwarded-Client-Cert"); old[0] == renewed[0] {
		t.Error("the new call went out under the old SVID")
	}
	server.says("two")
	stream.want("two")
	server.ends()
	stream.end()
	if serial(was) == serial(now) {
		t.Fatal("the SVID did not rotate")
	}
	for _, r := range w.trail.await(t, 2, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome }) {
		if !r.Complete {
			t.Errorf("%s", toJSON(r))
		}
	}
}

// ARCHITECTURE, Fixed choices: a connection is dialled only while both SVIDs outlive max_exchange; one that has become
// too old for that is not used again.
func TestPoolKeepsToTheSVIDs(t *testing.T) {
	raw := request("GET /fhir/Patient/a", "")
	t.Run("the caller's ends too soon to dial", func(t *testing.T) {
		w := newWorld(t, setup{})
		next := w.nextWard(w.self.svid.Load())
		w.portal.svid.Store(w.ca.issue(t, "/app/portal", endingIn(30*time.Second)))
		w.checkRefusal(t, w.call(w.portal, raw), proxy.HopEgress, proxy.CauseIdentityEnding)
		next.untouched(t)
	})
	t.Run("the caller's has come too near its end to go on", func(t *testing.T) {
		w := newWorld(t, setup{})
		next := w.nextWard(w.self.svid.Load())
		if a := w.call(w.portal, raw); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		w.clock.Advance(59*time.Minute + 30*time.Second)
		w.checkRefusal(t, w.call(w.portal, raw), proxy.HopEgress, proxy.CauseIdentityEnding)
		if len(next.all()) != 1 {
			t.Error("the call was made")
		}
	})
	t.Run("the other end's has come too near its end", func(t *testing.T) {
		w := newWorld(t, setup{})
		next := w.nextWard(w.self.svid.Load())
		w.portal.svid.Store(w.ca.issue(t, "/app/portal", endingIn(3*time.Hour)))
		for range 2 {
			if a := w.call(w.portal, raw); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		w.clock.Advance(59*time.Minute + 30*time.Second)
		// The ward there has renewed in the meantime, but that does not show on the old connection.
		renewed := w.nextWard(w.ca.issue(t, "/ward/ehr", endingIn(3*time.Hour)))
		if a := w.call(w.portal, raw); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if len(next.all()) != 2 || len(renewed.all()) != 1 {
			t.Error("the old connection was used again")
		}
	})
}

// A ward of the service that is down is passed over.
func TestPoolTriesEachAddress(t *testing.T) {
	w := newWorld(t, setup{})
	next := w.nextWard(w.self.svid.Load())
	down := listen(t)
	_ = down.Close()
	w.service.Addresses = append([]string{down.Addr().String()}, w.service.Addresses...)
	if a := w.call(w.portal, request("GET /fhir/Patient/a", "")); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	next.only(t)
}

// Close lets go of the connections that no call is using.
func TestPoolClose(t *testing.T) {
	w := newWorld(t, setup{})
	next := w.nextWard(w.self.svid.Load())
	if a := w.call(w.portal, request("GET /fhir/Patient/a", "")); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.pool.Close()
	select {
	case <-next.closed:
	case <-time.After(patience):
		t.Error("the connection is still open")
	}
}

// A service that is there no more, or is another under its name, loses its connections at once; one that stays keeps
// them.
func TestPoolRetain(t *testing.T) {
	for name, c := range map[string]struct {
		after func(*world) directory
		ends  bool
	}{
		"stays": {func(w *world) directory { return directory{serviceName: w.service} }, false},
		"gone":  {func(*world) directory { return directory{} }, true},
		"another": {func(w *world) directory {
			other := *w.service
			return directory{serviceName: &other}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			next := w.nextWard(w.self.svid.Load())
			raw := request("GET /fhir/Patient/a", "")
			if a := w.call(w.portal, raw); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			w.pool.Retain(c.after(w))
			if c.ends {
				select {
				case <-next.closed:
				case <-time.After(patience):
					t.Fatal("the connection is still open")
				}
			}
			if a := w.call(w.portal, raw); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if all := next.all(); (all[0].conn != all[1].conn) != c.ends {
				t.Errorf("calls came by connections %d and %d", all[0].conn, all[1].conn)
			}
		})
	}
}

// A service that fails time and again is spared for a moment, for the caller that it failed, and then tried again.
func TestPoolSparesADeadService(t *testing.T) {
	w := newWorld(t, setup{})
	next := w.nextWard(w.self.svid.Load())
	alive := w.service.Addresses
	down := listen(t)
	_ = down.Close()
	w.service.Addresses = []string{down.Addr().String()}
	raw := request("GET /fhir/Patient/a", "")
	for range 5 {
		w.checkRefusal(t, w.call(w.portal, raw), proxy.HopEgress, proxy.CauseUpstream)
	}
	a := w.call(w.portal, raw)
	w.checkRefusal(t, a, proxy.HopEgress, proxy.CauseUpstreamDown)
	if a.header.Get("Retry-After") == "" {
		t.Error("nobody says when to come again")
	}
	w.service.Addresses = alive
	w.checkRefusal(t, w.call(w.portal, raw), proxy.HopEgress, proxy.CauseUpstreamDown)
	if a := w.call(w.ehr, raw); a.status != 200 {
		t.Errorf("another caller: %d %s", a.status, a.body)
	}
	w.clock.Advance(time.Second)
	for range 3 {
		if a := w.call(w.portal, raw); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if n := len(next.all()); n != 4 {
		t.Errorf("%d calls arrived, want 4", n)
	}
}

// What was opened in the name of a process does not outlive it, nor the SVID that it was opened with; what was opened for
// another of the same identity does.
func TestPoolLetsGoOfTheDead(t *testing.T) {
	for name, end := range map[string]func(w *world, p *process, c net.Conn){
		"its identity has ended": func(_ *world, p *process, _ net.Conn) { close(p.over) },
		"it has exited": func(_ *world, p *process, c net.Conn) {
			gone := errGone
			p.ended.Store(&gone)
			_ = c.Close()
		},
		"its SVID is renewed": func(w *world, p *process, _ net.Conn) {
			p.svid.Store(w.ca.issue(w, "/app/portal", issuedAgo(0)))
			close(p.update)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			next := w.nextWard(w.self.svid.Load())
			p, twin := w.process("/app/portal"), w.process("/app/portal")
			p.update = make(chan struct{})
			raw := request("GET /fhir/Patient/a", "")
			c := w.dialEgress(p)
			for _, a := range []*answer{w.call(twin, raw), send(t, c, raw)} {
				if a.status != 200 {
					t.Fatalf("%d %s", a.status, a.body)
				}
			}
			end(w, p, c)
			select {
			case <-next.closed:
			case <-time.After(patience):
				t.Fatal("its connection is still open")
			}
			if a := w.call(twin, raw); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			all := next.all()
			if last := all[len(all)-1]; last.conn != all[0].conn {
				t.Error("the other process's connection was closed too")
			}
		})
	}
}
