package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Somebody has made the folder of the agent's socket before the agent did, in a folder where anybody may. From a socket
// in it a ward would get bundles and SVIDs of his making, and take his calls for anybody's.
func TestAttackFolderOfTheAgentsSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to make another user's folder")
	}
	const attacker = 7003
	base, err := os.MkdirTemp("", "ward")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	folder := func(name string, owner int, mode os.FileMode) string {
		dir := filepath.Join(base, name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, owner, owner), os.Chmod(dir, mode)); err != nil { //nolint:gosec // others' folders
			t.Fatal(err)
		}
		return dir
	}
	if err := os.Chmod(base, 0o755); err != nil { //nolint:gosec // others' folders lie there
		t.Fatal(err)
	}
	folder("open", 0, 0o777|os.ModeSticky)
	for _, c := range []struct {
		name, dir string
		ok        bool
	}{
		{"root's folder", folder("root", 0, 0o755), true},
		{"the folder of a user that root has chosen", folder("agent", attacker, 0o755), true},
		{"a folder that anybody could have made", folder("open/ward", attacker, 0o755), false},
		{"a folder that others can write", folder("wide", 0, 0o777), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := filepath.Join(c.dir, "w.sock")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := agentServes(socket)(conn); (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
			o := &overSocket{address: "unix://" + socket, verify: agentServes(socket), log: zap.NewNop()}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			dialled, err := o.dial(ctx, "")
			if (err == nil) != c.ok {
				t.Errorf("the ingress ward: %v", err)
			}
			if err == nil {
				_ = dialled.Close()
			} else if !strings.Contains(err.Error(), "chmod") && !strings.Contains(err.Error(), "can be written") {
				t.Errorf("unhelpful: %v", err)
			}
		})
	}
	// A link to a sound folder is as good as who could change the link.
	if err := errors.Join(os.Symlink(filepath.Join(base, "root"), filepath.Join(base, "open", "link")), os.Lchown(filepath.Join(base, "open", "link"), attacker, attacker)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(base, "root", "l.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	socket := filepath.Join(base, "open", "link", "l.sock")
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if agentServes(socket)(conn) == nil {
		t.Error("an attacker's link was followed")
	}
}
