package api_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-memdb"

	"github.com/wardmesh/ward/workload"
)

// Real processes, pinned by the kernel and attested by uid, unit, path and hash.
func TestRealProcesses(t *testing.T) {
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: workload.Tables()})
	if err != nil {
		t.Fatal(err)
	}
	txn := db.Txn(true)
	e := entry("portal", "unix.uid", strconv.Itoa(os.Getuid()), "exe.path", self(t))
	if err := workload.NewRegistry(db).Load(txn, []*workload.Entry{e}, nil); err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	path := filepath.Join(t.TempDir(), "workload.sock")
	stop, service, err := serveReal(path, db, newAuthority(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)

	t.Run("the enrolled program", func(t *testing.T) {
		if c := start(t, self(t), fetchRole, path, nil); c.first != "spiffe://clinic.test/portal" {
			t.Error(c.first)
		}
	})
	t.Run("its heir keeps nothing", func(t *testing.T) {
		c := start(t, self(t), leaveRole, path, nil)
		pid, err := strconv.Atoi(c.first)
		if err != nil {
			t.Fatal(c.first)
		}
		defer func() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil { // it still had the connection open
				t.Error(err)
			}
		}()
		if n := service.Status()[0].Holders; n < 1 {
			t.Fatalf("%d holders of the SVID", n)
		}
		c.end()
		for service.Status()[0].Holders > 0 { // an open stream holds its SVID
			runtime.Gosched()
		}
	})
	t.Run("the same program as another user", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("SKIPPED: needs root, to start a process as another user")
		}
		dir := t.TempDir()
		for _, d := range []string{dir, filepath.Dir(dir), filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		binary, err := os.ReadFile(self(t)) // the original lies in a folder that is root's alone
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(dir, "portal")
		if err := os.WriteFile(copied, binary, 0o755); err != nil {
			t.Fatal(err)
		}
		c := start(t, copied, fetchRole, path, &syscall.Credential{Uid: 64999, Gid: 64999})
		if !strings.Contains(c.first, "PermissionDenied") || !strings.Contains(c.first, "unix.uid: 64999") {
			t.Error(c.first)
		}
	})
}
