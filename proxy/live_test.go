package proxy_test

import (
	"io"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/proxy"
)

// running starts a call of w.portal whose reply goes on and on.
func (w *world) running() (*stream, script) {
	server := w.upstream.chunks(w)
	s := w.stream(w.portal, plainRead(w))
	server.says("one")
	s.want("one")
	return s, server
}

// isCut sees that the call has been cut off, in front of the caller and in the trail.
func (w *world) isCut(s *stream) {
	w.Helper()
	if _, err := io.ReadAll(s.res.Body); err == nil {
		w.Error("the caller takes the reply for whole")
	}
	for _, r := range w.trail.await(w, 1, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome }) {
		if r.Complete {
			w.Errorf("the trail takes the reply for whole: %s", toJSON(r))
		}
	}
}

// What a connection rests on ends while a call runs on it: the call ends too.
func TestLiveConnectionsAreCut(t *testing.T) {
	for name, change := range map[string]func(w *world) (cut int){
		"the caller is denied": func(w *world) int {
			w.denied.deny(w.portal.id)
			return w.live.Recheck()
		},
		"the caller may not call the service any more": func(w *world) int {
			o, s := w.rules, *w.service
			s.Callers = []spiffeid.ID{w.ehr.id}
			o.Service = &s
			return w.live.Replace(proxy.NewIngress(o))
		},
		"the CA of the caller is withdrawn": func(w *world) int {
			w.self.Set.Add(newAuthority(w, "clinic.test").bundle())
			return w.live.Recheck()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			s, _ := w.running()
			if n := w.live.Recheck(); n != 0 {
				t.Fatalf("%d connections were cut for nothing", n)
			}
			if n := change(w); n != 1 {
				t.Fatalf("%d connections were cut, want 1", n)
			}
			w.isCut(s)
		})
	}
	t.Run("the identity of the local caller has ended", func(t *testing.T) {
		w := newWorld(t, setup{})
		s, _ := w.running()
		close(w.portal.over)
		w.isCut(s)
	})
	t.Run("the CA of the ward is withdrawn", func(t *testing.T) {
		w := newWorld(t, setup{})
		w.portal.update = make(chan struct{})
		s, _ := w.running()
		w.portal.Set.Add(newAuthority(t, "clinic.test").bundle())
		close(w.portal.update)
		w.isCut(s)
	})
}

// A call keeps to the rules under which it began, and the next call meets the new ones on the same connection.
func TestRulesChangeBetweenCalls(t *testing.T) {
	w := newWorld(t, setup{})
	s, server := w.running()
	o := w.rules
	o.Policy = denyAll{}
	if n := w.live.Replace(proxy.NewIngress(o)); n != 0 {
		t.Fatalf("%d connections were cut for a change of policy", n)
	}
	server.says("two")
	s.want("two")
	server.ends()
	s.end()
	if a := w.call(w.portal, plainRead(w)); a.status != 403 || !strings.Contains(a.body, "forbidden") {
		t.Errorf("under the new policy: %d %s", a.status, a.body)
	}
}

type denyAll struct{}

func (denyAll) Decide(*proxy.Facts) proxy.Decision { return proxy.Decision{} }
