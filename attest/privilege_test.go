package attest_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// What Ward knows of another user's process with the privileges that it has: without any, user and groups.
func TestPrivileges(t *testing.T) {
	rootOnly(t, "be two users")
	for _, c := range []struct {
		name string
		caps []uintptr
		path bool // the executable and its exec are seen
		tcp  bool // a TCP connection finds its process
	}{
		{"none", nil, false, false},
		{"SYS_PTRACE", []uintptr{unix.CAP_SYS_PTRACE}, true, false},
		{"SYS_PTRACE and DAC_READ_SEARCH", []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Getenv(inside) == "" {
				asOtherUser(t, c.caps)
				return
			}
			pinner := newPinner(t, peer.Options{})
			_, p := acceptPinned(t, pinner, inheritedListener(t, 3))
			a := run(t, p, allAttestors(t))
			want := attest.NewSelectors(
				attest.Selector{Type: attest.UnixUID, Value: "12345"}, attest.Selector{Type: attest.UnixGID, Value: "12345"},
				attest.Selector{Type: attest.UnixGroup, Value: "12346"}, attest.Selector{Type: attest.UnixGroup, Value: "12347"})
			if diff := cmp.Diff(want, omit(a.Selectors, attest.SystemdUnit, attest.SystemdUserUnit, attest.ExePath, attest.ExeSHA256)); diff != "" {
				t.Error(diff)
			}
			if got := values(a.Selectors, attest.ExePath); (len(got) == 1) != c.path {
				t.Errorf("path %v", got)
			}
			q, err := pinner.TCP(t.Context(), accept[*net.TCPConn](t, inheritedListener(t, 4)))
			if c.tcp && (err != nil || q.PID() != p.PID()) || !c.tcp && !errors.Is(err, peer.ErrNotAttributable) {
				t.Errorf("over TCP: %v", err)
			}
			// Its own user's it always knows.
			l := listenTCP(t, "127.0.0.1:0")
			actor := start(t, os.Args[0])
			actor.do("tcp " + l.Addr().String())
			if _, p := acceptPinned(t, pinner, l); p.PID() != actor.pid() {
				t.Errorf("pid %d; want %d", p.PID(), actor.pid())
			}
		})
	}
}

// asOtherUser runs the calling test again as user 12399, with two listeners to which user 12345 has connected.
func asOtherUser(t *testing.T, caps []uintptr) {
	t.Helper()
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{unixListener, tcpListener} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	actor := start(t, "", asUser(12345))
	actor.do("unix " + unixListener.Addr().String())
	actor.do("tcp " + tcpListener.Addr().String())
	ward := program(t)
	inNamespaces(t, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args[0], cmd.ExtraFiles = ward, ward, files
		a := attributes(cmd)
		a.Credential = &syscall.Credential{Uid: 12399, Gid: 12399}
		a.AmbientCaps = caps
	})
}

func inheritedListener(t *testing.T, fd uintptr) net.Listener {
	t.Helper()
	f := os.NewFile(fd, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// In a user namespace that maps one user, everybody else looks like the same one.
func TestUnmappedUsers(t *testing.T) {
	rootOnly(t, "have processes of two user namespaces")
	if os.Getenv(inside) == "" {
		l := listenUnix(t)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		actor := start(t, "", asUser(12345))
		actor.do("unix " + l.Addr().String())
		inNamespaces(t, func(cmd *exec.Cmd) {
			a := attributes(cmd)
			a.Cloneflags = unix.CLONE_NEWUSER
			a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			cmd.ExtraFiles = []*os.File{f}
		})
		return
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = newPinner(t, peer.Options{}).Unix(accept[*net.UnixConn](t, l))
	wantError(t, err, attest.ErrMismatch)
}
