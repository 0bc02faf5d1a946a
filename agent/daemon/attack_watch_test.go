package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
)

// A config is copied over the old one by something slow: its beginning is whole YAML, and lacks the last denial. It must
// not be taken while the rest is on its way.
func TestAttackHalfOfAConfigIsNotTaken(t *testing.T) {
	for !copySlowly(t) { // this machine was slower than anybody would wait for
	}
}

// copySlowly reports whether the rest came while it is still waited for.
func copySlowly(t *testing.T) bool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ward.yaml")
	head := "trust_domain: clinic.test\nauthority: {dir: a}\nagent: {socket: w.sock}\naudit: {dir: b}\nmesh: {dns: '', listen: '', sockets: ''}\ndeny:\n  - /app/a\n"
	whole := head + "  - /app/b\n"
	if err := os.WriteFile(file, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func() (*config.Config, error) { return config.Load(file, config.Options{}) }
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan int, 100)
	now := cfg
	f := watch{log: zap.NewNop(), load: load, current: func() *config.Config { return now }, refuse: func(error) {},
		apply: func(c *config.Config) error { now = c; taken <- len(c.Deny); return nil }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if n := <-taken; n != 2 { // the look at the start
		t.Fatal(n)
	}
	begun := time.Now()
	late := func() bool { return time.Since(begun) >= making }
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	if _, err := fmt.Fprint(out, head); err != nil {
		t.Fatal(err)
	}
	select { // ten times as long as a whole config would take
	case n := <-taken:
		if late() {
			return false
		}
		t.Fatalf("half of it was taken, with %d denials", n)
	case <-time.After(10 * settle):
	}
	if _, err := fmt.Fprint(out, "  - /app/b\n  - /app/c\n"); err != nil {
		t.Fatal(err)
	}
	if late() {
		return false
	}
	if n := <-taken; n != 3 {
		t.Errorf("%d denials at the end", n)
	}
	// What is meant to be shorter is taken all the same, a little later.
	if err := os.WriteFile(file, []byte(head), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range taken {
		if n == 1 {
			break
		}
	}
	return true
}
