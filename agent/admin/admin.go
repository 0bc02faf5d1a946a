// Package admin is the operator's door to a running Ward: a Unix socket on which status, entries, metrics and
// profiles can be read, and on which a CA can be replaced ([Certifier]). It changes nothing else, and it knows nothing but
// what the daemon hands it.
//
// Who may open it is decided by the socket's mode: root and the daemon's own user, and the group ward-admin where
// the host has one. No daemon is in that group, so a captured proxy cannot read the agent's state here. The answers
// hold identifiers and times; never keys, tokens or patients' data. A change is a POST, and goes into the trail together
// with the uid of the process that asked for it, which the kernel tells.
//
// HTTP over the socket, so that curl is a client: `curl --unix-socket /run/ward/agent/admin.sock http://ward/status`.
// Every JSON answer names its schema, and fields are only ever added.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// Group is the group whose members may open admin sockets, where it exists.
const Group = "ward-admin"

// Source gives what the socket shows. Implemented by agent/daemon.
type Source interface {
	Status(ctx context.Context) Status
	Entries(ctx context.Context) Entries
}

// Options configures a Server. All fields but Listener must be set.
type Options struct {
	Socket string
	// Listener is the socket when it is open already, as the service manager has made it; nil: Listen opens it.
	Listener net.Listener
	Source   Source
	// Certifier is whose CAs can be replaced here; NoCertifier where there is none.
	Certifier Certifier
	Metrics   prometheus.Gatherer
	Log       *zap.Logger
}

// Server is a listening admin socket.
type Server struct {
	socket   string
	listener net.Listener
	http     *http.Server
}

// Listen opens the socket. A socket left behind by a daemon that is gone is replaced; one that answers is not.
func Listen(o Options) (*Server, error) {
	if o.Listener != nil {
		return serverOn(o.Listener, o), nil
	}
	l, err := Open(o.Socket)
	if err != nil {
		return nil, err
	}
	return serverOn(l, o), nil
}

// Open opens the socket at path, for its user and the group ward-admin.
func Open(path string) (net.Listener, error) {
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if g, err := user.LookupGroup(Group); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil && os.Chown(path, -1, gid) == nil {
			err = os.Chmod(path, 0o660) //nolint:gosec // the group is the point
			if err != nil {
				_ = l.Close()
				return nil, fmt.Errorf("admin socket: %w", err)
			}
		}
	}
	return l, nil
}

func serverOn(l net.Listener, o Options) *Server {
	return &Server{o.Socket, l, &http.Server{Handler: Handler(o), ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0), ConnContext: withUID}}
}

// Close ends the taking of connections: another process has the socket, too, and answers on it. Serve goes on with those
// that are open.
func (s *Server) Close() error { return s.listener.Close() }

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	err := s.http.Serve(s.listener)
	if errors.Is(err, net.ErrClosed) {
		<-ctx.Done()
		return s.http.Close()
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown answers what has been asked, while ctx lasts, and ends.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Handler is what the socket serves.
func Handler(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { answer(w, o.Source.Status(r.Context())) })
	mux.HandleFunc("GET /entries", func(w http.ResponseWriter, r *http.Request) { answer(w, o.Source.Entries(r.Context())) })
	mux.HandleFunc("GET /ca", o.showCAs)
	mux.HandleFunc("POST /ca", o.orderCA)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if st := o.Source.Status(r.Context()); !st.Healthy() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "degraded\n")
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader has gone away
}

// ListenUnix listens on a Unix socket with exactly the given mode, in a folder that it makes when it is missing. It
// refuses to take the place of a socket on which somebody still listens, and of anything that is not a socket.
func ListenUnix(path string, mode os.FileMode) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is in the way and is not a socket; move it aside", path)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("another process listens on %s; is Ward running already? (ward status)", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}
