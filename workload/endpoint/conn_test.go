package endpoint

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/attest"
)

// user is a process of which only the user matters.
type user struct {
	attest.Process
	uid uint32
}

func (u user) UID() uint32         { return u.uid }
func (user) Done() <-chan struct{} { return nil }

func options() Options {
	return Options{
		Name: "test", Header: "test.example", Metrics: "ward_test", Refused: "Refused.", Registerer: prometheus.NewRegistry(),
		Pin:     func(net.Conn) (Process, error) { return user{uid: 1000}, nil },
		Admit:   func(c *Conn) (string, error) { return c.Place(10, Room{Name: "all", Most: 1}) },
		Check:   func(*Conn) error { return nil },
		Streams: Room{Name: "streams", Most: 1}, StreamsPerConn: 1, MaxRequest: 1,
		Register: func(grpc.ServiceRegistrar) {},
	}
}

func TestMissingOption(t *testing.T) {
	for name, without := range map[string]func(*Options){
		"name": func(o *Options) { o.Name = "" }, "header": func(o *Options) { o.Header = "" }, "metrics": func(o *Options) { o.Metrics = "" },
		"registerer": func(o *Options) { o.Registerer = nil }, "pin": func(o *Options) { o.Pin = nil }, "admit": func(o *Options) { o.Admit = nil },
		"check": func(o *Options) { o.Check = nil }, "streams": func(o *Options) { o.Streams.Most = 0 },
		"streams of a connection": func(o *Options) { o.StreamsPerConn = 0 }, "request": func(o *Options) { o.MaxRequest = 0 },
		"register": func(o *Options) { o.Register = nil },
	} {
		o := options()
		without(&o)
		if _, err := New(o); err == nil {
			t.Errorf("a server without %s was made", name)
		}
	}
}

// A connection that has lost its standing tells its calls why, and is closed in the end, so that its place is free.
func TestEndedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(options())
		if err != nil {
			t.Fatal(err)
		}
		h := &pinning{server: s}
		accepted := func() (*Conn, net.Conn) {
			near, far := net.Pipe()
			return &Conn{Conn: near, server: s}, far
		}
		if _, _, err := h.ServerHandshake(&net.TCPConn{}); err == nil {
			t.Error("a connection that was not accepted here was let in")
		}
		c, far := accepted()
		_, info, err := h.ServerHandshake(c)
		if err != nil {
			t.Fatal(err)
		}
		call := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info})
		ctx, leave, err := s.enter(call)
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		if _, _, err := s.enter(call); status.Code(err) != codes.Unavailable {
			t.Errorf("a call for which there is no place: %v", err)
		}

		told := status.Error(codes.PermissionDenied, "no longer")
		c.End(told, time.Minute)
		<-ctx.Done()
		if err := whyEnded(ctx, context.Canceled); err != told {
			t.Errorf("a call under way was told %v", err)
		}
		if _, _, err := s.enter(call); err != told {
			t.Errorf("a later call was told %v", err)
		}
		second, _ := accepted()
		if _, _, err := h.ServerHandshake(second); !errors.Is(err, errNoPlace) {
			t.Errorf("the place of a connection that is still open was given away: %v", err)
		}
		_ = second.Close()

		ended := time.Now()
		if _, err := far.Read(make([]byte, 1)); err != io.EOF || time.Since(ended) != time.Minute {
			t.Errorf("the connection: %v after %v", err, time.Since(ended))
		}
		third, _ := accepted()
		if _, _, err := h.ServerHandshake(third); err != nil {
			t.Errorf("the place was not given back: %v", err)
		}
		_ = third.Close()
		if _, _, err := s.enter(t.Context()); status.Code(err) != codes.Internal {
			t.Errorf("a call without a connection: %v", err)
		}
		s.Shutdown(t.Context())
	})
}
