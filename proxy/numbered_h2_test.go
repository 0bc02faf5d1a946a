package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/wire"
	"github.com/wardmesh/ward/proxy/wire/h2test"
)

// h2Behaviours are the numbers by HTTP/2, which ingress alone speaks. Its frames are tried one by one in proxy/wire.
func h2Behaviours() []behaviour {
	out := []behaviour{
		{"5 trailers are dropped by HTTP/2", byH2, testH2TrailersAreDropped},
		{"8 streams are each decided", byH2, testH2StreamsAreEachDecided},
		{"9 Expect: 100-continue is honoured by HTTP/2", byH2, testH2Expect},
		{"10 forged fields are stripped by HTTP/2", byH2, testH2ForgedFieldsAreStripped},
		{"15 certificates that are no SVIDs by HTTP/2", byH2, testH2Certificates},
		{"15 a stream ends with its connection's identities", byH2, testH2ConnectionEndsWithItsIdentity},
		{"19 slow peers by HTTP/2", byH2, testH2Slow},
		{"21 floods", byH2, testH2Floods},
	}
	for _, n := range []int{1, 2, 10, 11, 12, 13, 14, 16, 17, 18, 20, 21, 22} {
		out = append(out, behaviour{fmt.Sprintf("%d refused by HTTP/2", n), byH2, testH2Refusals(n)})
	}
	return out
}

func testH2Expect(t *testing.T) {
	w := newWorld(t, setup{})
	p := w.h2(t, w.ehr.svid.Load())
	p.Open(1, false, w.fields("POST", "/fhir/Observation", "content-type", "application/fhir+json", "expect", "100-continue",
		"authorization", "Bearer "+w.issuer.token(t, "ehr"))...)
	for len(p.So(1, 0).Interim) == 0 && p.Next() != nil {
	}
	p.Do(p.WriteData(1, true, []byte(newObservation)))
	if a := p.Answer(1); a.Status != 201 || len(a.Interim) != 1 || a.Interim[0] != 100 {
		t.Errorf("%+v", a)
	}
	if r := w.upstream.only(t); len(r.field("Expect")) > 0 || r.body != newObservation {
		t.Errorf("%q", r.raw)
	}
}

func testH2Certificates(t *testing.T) {
	for name, svid := range badSVIDs() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			c, err := w.handshake(svid(t, w), offerH2)
			if err == nil {
				_, _ = c.Write([]byte(http2.ClientPreface))
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil {
				t.Error("the connection was accepted")
			}
			w.awaitHandshakeRefusal(t)
			w.upstream.untouched(t)
		})
	}
}

// testH2Slow: what a head's and an exchange's bounds are by HTTP/1.1 they are here.
func testH2Slow(t *testing.T) {
	t.Run("a head that does not end", func(t *testing.T) {
		t.Parallel()
		w := slow(t, func(s *wire.Server) { s.HeadTimeout = soon })
		p := w.h2(t, w.portal.svid.Load())
		p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.Block(w.fields("GET", "/fhir/Patient/a")...)}))
		for _, err := p.ReadFrame(); err == nil; { // without an answer, which would stand amid the head
			_, err = p.ReadFrame()
		}
		r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Hop == proxy.HopIngress && r.Stage == proxy.StageRefusal })[0]
		if r.Cause != proxy.CauseTimeout || r.Decision == "" {
			t.Errorf("%s", toJSON(r))
		}
		w.upstream.untouched(t)
	})
	t.Run("a body that does not come", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, setup{service: endsSoon})
		p := w.h2(t, w.ehr.svid.Load())
		p.Open(1, false, w.fields("POST", "/fhir/Observation", "content-type", "application/fhir+json", "authorization", "Bearer "+w.issuer.token(t, "ehr"))...)
		p.Do(p.WriteData(1, false, []byte("{")))
		w.checkRefusal(t, asked(p.Answer(1)), proxy.HopIngress, proxy.CauseTimeout)
		w.upstream.untouched(t)
	})
}

// 21: floods end their connection, with a record, and reach nobody behind it; others are served all the while.
func testH2Floods(t *testing.T) {
	more := func(n int, write func(p *h2test.Peer, i uint32) error) func(*h2test.Peer) {
		return func(p *h2test.Peer) {
			for i := range uint32(n) { //nolint:gosec // n is small
				if write(p, i) != nil {
					return // the server has had enough
				}
			}
		}
	}
	for name, flood := range map[string]func(w *world) func(*h2test.Peer){
		"rapid reset": func(w *world) func(*h2test.Peer) {
			fields := w.fields("GET", "/fhir/Account/1") // which is forbidden, should it be decided on at all
			return more(20_000, func(p *h2test.Peer, i uint32) error {
				if err := p.OpenBlock(2*i+1, true, p.Block(fields...)); err != nil {
					return err
				}
				return p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			})
		},
		"CONTINUATION": func(w *world) func(*h2test.Peer) {
			return func(p *h2test.Peer) {
				p.Do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.Block(w.fields("GET", "/fhir/Patient/a")...)}))
				more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WriteContinuation(1, false, nil) })(p)
			}
		},
		"SETTINGS": func(*world) func(*h2test.Peer) {
			return more(100_000, func(p *h2test.Peer, _ uint32) error {
				return p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			})
		},
		"PING": func(*world) func(*h2test.Peer) {
			return more(100_000, func(p *h2test.Peer, _ uint32) error { return p.WritePing(false, [8]byte{}) })
		},
		"an HPACK bomb": func(w *world) func(*h2test.Peer) {
			return func(p *h2test.Peer) {
				// One entry of the table, named again and again: a byte each on the wire.
				block := p.Block(append(w.fields("GET", "/fhir/Patient/a"), "x", strings.Repeat("x", 3000))...)
				again := p.Block("x", strings.Repeat("x", 3000))
				for range 10_000 {
					block = append(block, again...)
				}
				_ = p.OpenBlock(1, true, block)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{})
			p := w.h2(t, w.portal.svid.Load())
			run := flood(w)
			read := make(chan struct{})
			go func() { // what comes is read while the flood goes on
				defer close(read)
				for {
					if _, err := p.ReadFrame(); err != nil {
						return
					}
				}
			}()
			run(p)
			r := w.trail.await(t, 1, func(r *proxy.Record) bool {
				return r.Stage == proxy.StageRefusal && (r.Cause == proxy.CauseMalformed || r.Cause == proxy.CauseHeadTooLarge || r.Cause == proxy.CauseLimit)
			})[0]
			if r.Decision == "" || r.Caller != w.portal.id.String() || r.Hop != proxy.HopIngress {
				t.Errorf("%s", toJSON(r))
			}
			<-read
			w.upstream.untouched(t)
			if a := send(t, w.dialIngress(w.portal.svid.Load()), plainRead(w)); a.status != 200 {
				t.Errorf("afterwards: %d %s", a.status, a.body)
			}
		})
	}
	t.Run("zero window", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, setup{service: endsSoon})
		w.upstream.always(reply(200, strings.Repeat("x", 1<<20)))
		p := w.h2(t, w.portal.svid.Load())
		p.Stingy = true
		p.Open(1, true, w.fields("GET", "/fhir/Observation/1")...)
		if a := p.Answer(1); a.Whole || len(a.Body) >= 1<<20 {
			t.Errorf("%d bytes, whole %v", len(a.Body), a.Whole)
		}
		r := w.trail.await(t, 1, func(r *proxy.Record) bool { return r.Stage == proxy.StageOutcome })[0]
		if r.Complete || r.Decision == "" {
			t.Errorf("%s", toJSON(r))
		}
	})
}
