package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What other users of this host try, and what they get.

func (l *live) checkAttacks(ctx context.Context) {
	for _, attack := range []struct {
		name string
		try  func(context.Context) (string, error)
	}{
		{"attack: taking the FHIR server's port while it restarts", l.attackUpstream},
		{"attack: another's egress", l.attackEgress},
		{"attack: a connection handed to another user", l.attackHandOver},
		{"attack: the sockets and their folders", l.attackFolders},
		{"attack: the broker and the operators' sockets", l.attackDoors},
		{"attack: forged references from egress itself", l.attackReferences},
		{"attack: another's pooled connection", l.attackPool},
		{"attack: ptrace", l.attackTrace},
		{"attack: 100,000 refused calls", l.attackDisk},
	} {
		if ctx.Err() != nil {
			return
		}
		l.report.check(attack.name, func() (string, error) { return attack.try(ctx) })
	}
}

// attempt has uid, in a process of its own and in group gid, try something, and gives what it got.
func (l *live) attempt(ctx context.Context, uid int, e errand) ([]said, error) {
	a, err := l.send("attack", uid, e)
	if err != nil {
		return nil, err
	}
	if _, err := a.heard(ctx, 0, func(s said) bool { return s.What == "done" }); err != nil {
		return nil, errors.Join(err, ignore(a.signal(syscall.SIGKILL), os.ErrProcessDone))
	}
	got, err := a.dismiss(ctx)
	if err != nil {
		return nil, err
	}
	return got[:len(got)-1], nil
}

// nothing is an error if anything of it succeeded; else it says what was got instead.
func nothing(got []said) (string, error) {
	var parts []string
	for _, s := range got {
		if s.Error == "" {
			return "", fmt.Errorf("%s %s: it worked: %s", s.What, s.Way, s.Text)
		}
		parts = append(parts, fmt.Sprintf("%s: %s", strings.TrimSpace(s.What+" "+s.Way), s.Error))
	}
	if len(parts) == 0 {
		return "", errors.New("nothing was tried")
	}
	return strings.Join(parts, "; "), nil
}

// good makes one call that must succeed.
func (l *live) good(ctx context.Context, uid int, token string) (answer, error) {
	a, err := l.curl(ctx, uid, token, nil, "--unix-socket", l.socket(), base+"/Patient/example")
	if err == nil {
		err = a.allowed(200)
	}
	return a, err
}

// attackUpstream: the FHIR server is gone, and somebody else listens in its place.
func (l *live) attackUpstream(ctx context.Context) (string, error) {
	if _, err := l.good(ctx, uidEHR, l.token); err != nil {
		return "", err
	}
	if err := l.fhir.signal(syscall.SIGKILL); err != nil {
		return "", err
	}
	if _, err := l.fhir.end(ctx); err != nil {
		return "", err
	}
	squatter, err := l.send("squatter", uidStranger, errand{Do: "squat", Ask: "127.0.0.1:" + fhirPort})
	if err != nil {
		return "", err
	}
	if _, err := squatter.heard(ctx, 0, func(s said) bool { return s.What == "listening" }); err != nil {
		return "", err
	}
	a, err := l.curl(ctx, uidEHR, l.token, nil, "--unix-socket", l.socket(), base+"/Patient/example")
	if err != nil {
		return "", err
	}
	got, err := squatter.dismiss(ctx)
	if err != nil {
		return "", err
	}
	conns := 0
	for _, s := range got {
		if s.What == "bytes" {
			return "", fmt.Errorf("uid %d, in the FHIR server's place, got: %.200q", uidStranger, s.Text)
		}
		if s.What == "connection" {
			conns++
		}
	}
	if a.Status < 500 || conns == 0 {
		return "", fmt.Errorf("the caller got %s, and the squatter %d connections", a.brief(), conns)
	}
	if err := l.startFHIR(ctx); err != nil {
		return "", err
	}
	if _, err := l.good(ctx, uidEHR, l.token); err != nil {
		return "", fmt.Errorf("the FHIR server is back: %w", err)
	}
	return fmt.Sprintf("uid %d got %d connections and not a byte on them; the caller got %d; with the FHIR server back, 200", uidStranger, conns, a.Status), nil
}

// attackEgress: a process that is not enrolled calls by every door, with a token that it has stolen; and so does one
// that is, with the token of another workload.
func (l *live) attackEgress(ctx context.Context) (string, error) {
	var parts []string
	for _, c := range []struct {
		uid  int
		args []string
	}{{uidStranger, []string{"--unix-socket", l.socket()}}, {uidStranger, []string{"--connect-to", "::" + egress}}, {uidPortal, []string{"--unix-socket", l.socket()}}} {
		a, err := l.curl(ctx, c.uid, l.token, nil, append(c.args, base+"/Patient/example")...)
		if err != nil {
			return "", err
		}
		if a.Status != http.StatusForbidden && a.Status != http.StatusUnauthorized {
			return "", fmt.Errorf("uid %d got %s", c.uid, a.brief())
		}
		parts = append(parts, fmt.Sprintf("uid %d by %s, with the EHR's token: %d", c.uid, strings.TrimLeft(c.args[0], "-"), a.Status))
	}
	return strings.Join(parts, "; "), nil
}

// attackHandOver: the portal opens a connection, and another user's process speaks on it.
func (l *live) attackHandOver(ctx context.Context) (string, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	defer func() { _ = unix.Close(pair[0]) }()
	in, err := json.Marshal(errand{Do: "give", Unix: l.socket(), Token: l.view})
	if err != nil {
		return "", err
	}
	giver, err := l.background("giver", program{uid: uidPortal, argv: []string{l.at("bin", "interop"), "act"}, stdin: strings.NewReader(string(in)), files: []*os.File{theirs}})
	if err := errors.Join(err, theirs.Close()); err != nil {
		return "", err
	}
	defer func() { _ = giver.signal(syscall.SIGKILL) }()
	conn, err := receive(pair[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if in, err = json.Marshal(errand{Do: "take", Token: l.view}); err != nil {
		return "", err
	}
	taker, err := l.background("taker", program{uid: uidStranger, argv: []string{l.at("bin", "interop"), "act"}, stdin: strings.NewReader(string(in)), files: []*os.File{conn}})
	if err != nil {
		return "", err
	}
	line, err := taker.ready(ctx, func(line string) bool { return strings.Contains(line, `"taken"`) })
	if err != nil {
		return "", err
	}
	var s said
	if err := json.Unmarshal([]byte(line), &s); err != nil {
		return "", err
	}
	if s.Error == "" {
		return "", fmt.Errorf("uid %d got the portal's answer", uidStranger)
	}
	return fmt.Sprintf("uid %d wrote a call on a connection that the portal had opened and used, and got: %s", uidStranger, s.Error), nil
}

// receive takes a descriptor from a socket.
func receive(fd int) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("no descriptor: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no descriptor: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "given"), nil
}

// attackFolders: somebody wants a socket of his own in the place of one of Ward's.
func (l *live) attackFolders(ctx context.Context) (string, error) {
	var parts []string
	for _, c := range []struct {
		who     string
		uid     int
		sockets []string
	}{{"a stranger", uidStranger, []string{l.agentSocket("workload"), l.agentSocket("broker"), l.socket(), l.at("run", "ingress", "admin.sock")}},
		{"egress", uidWardEgress, []string{l.agentSocket("workload"), l.agentSocket("broker"), l.at("run", "ingress", "admin.sock")}},
		{"ingress", uidWardIngress, []string{l.agentSocket("workload"), l.socket()}}} {
		for _, socket := range c.sockets {
			got, err := l.attempt(ctx, c.uid, errand{Do: "replace", Ask: socket})
			if err != nil {
				return "", err
			}
			if _, err := nothing(got); err != nil {
				return "", fmt.Errorf("%s: %w", c.who, err)
			}
		}
		parts = append(parts, fmt.Sprintf("%s (uid %d), %d sockets", c.who, c.uid, len(c.sockets)))
	}
	if _, err := l.good(ctx, uidEHR, l.token); err != nil {
		return "", err
	}
	return "nobody can remove, rename, overwrite or bind: " + strings.Join(parts, "; "), nil
}

// attackPool: two callers of one service, one of whom is denied: neither rides on the other's connections.
func (l *live) attackPool(ctx context.Context) (string, error) {
	sees := func(uid int, token, id string) error {
		a, err := l.good(ctx, uid, token)
		if err != nil {
			return err
		}
		var s *sighting
		for last := time.Now().Add(patience); s == nil; time.Sleep(10 * time.Millisecond) { // it answers, and then writes it down
			if s, err = l.seen(a.decision()); err != nil {
				return err
			}
			if s == nil && time.Now().After(last) {
				return errors.New("the FHIR server has not seen it")
			}
		}
		xfcc := s.Headers["x-forwarded-client-cert"]
		if len(xfcc) != 1 || !strings.HasSuffix(xfcc[0], ";URI=spiffe://"+domain+id) {
			return fmt.Errorf("the FHIR server was told %v, not %s", xfcc, id)
		}
		return nil
	}
	for range 10 {
		if err := errors.Join(sees(uidEHR, l.token, "/app/ehr"), sees(uidPortal, l.view, "/app/portal")); err != nil {
			return "", err
		}
	}
	if err := l.replaceFile("deny.yaml", "deny: [/app/ehr]\n"); err != nil {
		return "", err
	}
	defer func() { _ = l.removeFile("deny.yaml") }()
	var a answer
	for last := time.Now().Add(leniency); ; {
		var err error
		if a, err = l.curl(ctx, uidEHR, l.token, nil, "--unix-socket", l.socket(), base+"/Patient/example"); err != nil {
			return "", err
		}
		if a.Status != 200 && a.Error == "" || time.Now().After(last) { // a call that is under way is cut
			break
		}
	}
	if a.Status != http.StatusForbidden {
		return "", fmt.Errorf("the EHR is denied, and got %s", a.brief())
	}
	if err := sees(uidPortal, l.view, "/app/portal"); err != nil {
		return "", fmt.Errorf("the EHR is denied: %w", err)
	}
	return "of 20 calls by turns the FHIR server was told each one's own identity; with the EHR denied it got 403, and the portal 200", nil
}

// attackDisk: refusals are written down, and must not fill the disk: those of a workload that may not call here, and
// those of somebody whom nobody knows, who has to connect anew for each.
func (l *live) attackDisk(ctx context.Context) (string, error) {
	const calls, connections, most = 100_000, 500, 1 << 20
	before, err := size(l.at("var"))
	if err != nil {
		return "", err
	}
	logs, err := size(l.at("logs"))
	if err != nil {
		return "", err
	}
	var parts []string
	for _, c := range []struct{ uid, count int }{{uidNight, calls}, {uidStranger, connections}} {
		start := time.Now()
		got, err := l.attempt(ctx, c.uid, errand{Do: "flood", Count: c.count})
		if err != nil {
			return "", err
		}
		if _, err := nothing(got); err != nil {
			return "", err
		}
		parts = append(parts, fmt.Sprintf("uid %d got %s in %s", c.uid, got[0].Error, short3(time.Since(start))))
	}
	after, err := size(l.at("var"))
	if err != nil {
		return "", err
	}
	logsAfter, err := size(l.at("logs"))
	if err != nil {
		return "", err
	}
	said := fmt.Sprintf("%s; the trails grew by %d KiB (at most %d), the logs by %d KiB", strings.Join(parts, ", "),
		(after-before)>>10, most>>10, (logsAfter-logs)>>10)
	if after-before > most {
		return "", errors.New(said)
	}
	if _, err := l.good(ctx, uidEHR, l.token); err != nil {
		return "", err
	}
	return said, nil
}

// size is how many bytes lie in the files below a folder.
func size(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignore(err, fs.ErrNotExist)
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return ignore(err, fs.ErrNotExist)
	})
	return n, err
}
