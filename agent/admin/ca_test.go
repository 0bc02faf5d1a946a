package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
)

// certifier remembers what was ordered.
type certifier struct {
	mu     sync.Mutex
	orders []string
	err    error
}

func (c *certifier) CAs(context.Context) (admin.CAs, error) {
	return admin.CAs{Schema: admin.CAsSchema, Next: "prepare"}, nil
}

func (c *certifier) OrderCA(_ context.Context, uid uint32, o admin.CAOrder) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orders = append(c.orders, fmt.Sprintf("%d %s %d %v", uid, o.Step, o.Generation, o.Force))
	return c.err
}

func TestOrders(t *testing.T) {
	ca := new(certifier)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	s, err := admin.Listen(admin.Options{Socket: socket, Source: source{}, Certifier: ca, Metrics: prometheus.NewRegistry(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if got, err := admin.Order(t.Context(), socket, admin.CAOrder{Step: "retire", Generation: 3, Force: true}); err != nil || got.Next != "prepare" {
		t.Errorf("%+v, %v", got, err)
	}
	want := []string{fmt.Sprintf("%d retire 3 true", os.Getuid())} // the uid is the kernel's word
	if diff := cmp.Diff(want, ca.orders); diff != "" {
		t.Error(diff)
	}
	for kind, said := range map[error]string{admin.ErrRefused: "not now; possible from tomorrow", admin.ErrUnavailable: "its disk is away"} {
		ca.mu.Lock()
		ca.err = fmt.Errorf("%w: %s", kind, said)
		ca.mu.Unlock()
		if _, err := admin.Order(t.Context(), socket, admin.CAOrder{Step: "activate"}); !errors.Is(err, kind) || err.Error() != said {
			t.Errorf("%v, want %q", err, said)
		}
	}
}

// What is no order reaches no authority, and a GET changes nothing.
func TestWhatIsNoOrder(t *testing.T) {
	for name, c := range map[string]struct {
		method, kind, body string
		known              bool
		status             int
	}{
		"who asks is not known":    {"POST", "application/json", `{"step":"prepare"}`, false, http.StatusForbidden},
		"a form":                   {"POST", "application/x-www-form-urlencoded", `{"step":"prepare"}`, true, http.StatusUnsupportedMediaType},
		"plain text":               {"POST", "text/plain", `{"step":"prepare"}`, true, http.StatusUnsupportedMediaType},
		"no type":                  {"POST", "", `{"step":"prepare"}`, true, http.StatusUnsupportedMediaType},
		"nothing":                  {"POST", "application/json", ``, true, http.StatusBadRequest},
		"another step":             {"POST", "application/json", `{"step":"destroy"}`, true, http.StatusBadRequest},
		"no step":                  {"POST", "application/json", `{}`, true, http.StatusBadRequest},
		"an unknown key":           {"POST", "application/json", `{"step":"prepare","now":true}`, true, http.StatusBadRequest},
		"two orders":               {"POST", "application/json", `{"step":"prepare"}{"step":"retire"}`, true, http.StatusBadRequest},
		"a negative CA":            {"POST", "application/json", `{"step":"retire","generation":-1}`, true, http.StatusBadRequest},
		"too long":                 {"POST", "application/json", `{"step":"prepare"` + strings.Repeat(" ", 2000) + `}`, true, http.StatusBadRequest},
		"another method":           {"PUT", "application/json", `{"step":"prepare"}`, true, http.StatusMethodNotAllowed},
		"a GET that looks like it": {"GET", "application/json", `{"step":"prepare"}`, true, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			ca := new(certifier)
			h := admin.Handler(admin.Options{Source: source{}, Certifier: ca, Metrics: prometheus.NewRegistry(), Log: zap.NewNop()})
			r := httptest.NewRequest(c.method, "/ca", strings.NewReader(c.body))
			r.Header.Set("Content-Type", c.kind)
			if c.known {
				r = r.WithContext(admin.WithUID(r.Context(), 1000))
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status {
				t.Errorf("status %d, want %d", w.Code, c.status)
			}
			if len(ca.orders) > 0 {
				t.Errorf("ordered: %v", ca.orders)
			}
		})
	}
}

// A role without an authority says whom to ask.
func TestNoCertifier(t *testing.T) {
	h := admin.Handler(admin.Options{Source: source{}, Certifier: admin.NoCertifier{}, Metrics: prometheus.NewRegistry(), Log: zap.NewNop()})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/ca", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "ward agent") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

func FuzzOrder(f *testing.F) {
	for _, seed := range []string{`{"step":"prepare"}`, `{"step":"retire","generation":1,"force":true}`, `{"step":"retire","generation":1e3}`, `[]`, `{"step":"activate"} {}`, ``} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		o, err := admin.ParseOrder(strings.NewReader(body))
		if err == nil && o.Step != "prepare" && o.Step != "activate" && o.Step != "retire" {
			t.Errorf("%q is the order %+v", body, o)
		}
		if err != nil && o != (admin.CAOrder{}) {
			t.Errorf("%q is refused, and yet the order %+v", body, o)
		}
	})
}
