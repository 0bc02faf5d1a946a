package admin_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/admin"
)

type source struct{ problems []string }

func (s source) Status(context.Context) admin.Status {
	return admin.Status{Schema: admin.StatusSchema, Host: "icu-gw-07", Problems: s.problems}
}
func (s source) Entries(context.Context) admin.Entries {
	return admin.Entries{Schema: admin.EntriesSchema, Entries: []admin.Entry{{Name: "portal"}}}
}

func TestSocketAnswersAndIsPrivate(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d", "admin.sock")
	o := admin.Options{Socket: socket, Source: source{}, Certifier: admin.NoCertifier{}, Metrics: prometheus.NewRegistry(), Log: zap.NewNop()}
	s, err := admin.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	var st admin.Status
	if err := admin.Get(t.Context(), socket, "/status", &st); err != nil || st.Host != "icu-gw-07" {
		t.Errorf("%+v %v", st, err)
	}
	var e admin.Entries
	if err := admin.Get(t.Context(), socket, "/entries", &e); err != nil || len(e.Entries) != 1 {
		t.Errorf("%+v %v", e, err)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v %v: others can open it", fi.Mode(), err)
	}
	if _, err := admin.Listen(o); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second daemon took the socket: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	err = admin.Get(t.Context(), socket, "/status", &st)
	if !errors.Is(err, admin.ErrUnreachable) || !strings.Contains(err.Error(), "start") {
		t.Errorf("unhelpful: %v", err)
	}
}

func TestListenUnixTakesOverDeadSocketsOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l, err := admin.ListenUnix(path, 0o600)
	if err != nil {
		t.Fatalf("a dead socket was not replaced: %v", err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.ListenUnix(path, 0o600); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if b, _ := os.ReadFile(path); string(b) != "data" {
		t.Error("the file is gone")
	}
}
