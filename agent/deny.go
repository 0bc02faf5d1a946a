package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
)

// The deny list is config, so that it survives restarts and is seen by every role alike. These commands keep a file of
// their own beside the operator's, and wait until the running roles have taken it.

type denyCommands struct {
	Add    denyAddCommand    `cmd:"" help:"Deny an identity: its SVIDs end and its connections are cut."`
	Remove denyRemoveCommand `cmd:"" help:"Take an identity off the deny list."`
	List   denyListCommand   `cmd:"" help:"Show who is denied, since when and why."`
}

type denyAddCommand struct {
	configFlag
	ID     string `arg:"" help:"SPIFFE ID, or its path: /app/portal."`
	Reason string `placeholder:"TEXT" help:"Why, for those who read the list later."`
}

type denyRemoveCommand struct {
	configFlag
	ID string `arg:"" help:"SPIFFE ID, or its path."`
}

type denyListCommand struct{ configFlag }

// Run denies, and returns once every running role has cut what it must.
func (cmd denyAddCommand) Run(c *console) error {
	// YAML ends a line, and with it a comment, at more characters than the one that we write.
	if !utf8.ValidString(cmd.Reason) || strings.ContainsFunc(cmd.Reason, func(r rune) bool { return !unicode.IsPrint(r) }) || len(cmd.Reason) > 200 {
		return errors.New("the reason must be one line of at most 200 bytes")
	}
	d, done, err := cmd.change(c.ctx)
	if err != nil {
		return listErrors(c.err, err)
	}
	defer done()
	id, err := d.id(cmd.ID)
	if err != nil {
		return err
	}
	if slices.Contains(d.cfg.Deny, id) {
		// Written is not in force: the daemons may have refused the config in which it stands.
		if _, waiting, err := inForce(c.ctx, d.cfg, takeTime); err != nil {
			return fmt.Errorf("%s is written down already, but not everywhere in force: %s: %w; see: ward status", id, strings.Join(waiting, ", "), err)
		}
		_, err := fmt.Fprintf(c.out, "%s is denied already\n", id)
		return err
	}
	d.lines = append(d.lines, denial{id, time.Now().UTC(), cmd.Reason})
	return d.apply(c, "denied "+id.String())
}

// Run takes the denial back.
func (cmd denyRemoveCommand) Run(c *console) error {
	d, done, err := cmd.change(c.ctx)
	if err != nil {
		return listErrors(c.err, err)
	}
	defer done()
	id, err := d.id(cmd.ID)
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(slices.Clone(d.lines), func(l denial) bool { return l.id == id })
	switch {
	case len(kept) < len(d.lines):
		d.lines = kept
		return d.apply(c, id.String()+" is not denied any more")
	case slices.Contains(d.cfg.Deny, id):
		i := slices.Index(d.cfg.Deny, id)
		return fmt.Errorf("%s is denied at %s, which was written by hand; remove it there", id, d.cfg.At(fmt.Sprintf("deny[%d]", i)))
	}
	_, err = fmt.Fprintf(c.out, "%s is not denied\n", id)
	return err
}

// Run lists everybody who is denied, whoever wrote it.
func (cmd denyListCommand) Run(c *console) error {
	d, err := cmd.denials()
	if err != nil {
		return listErrors(c.err, err)
	}
	var b strings.Builder
	for i, id := range d.cfg.Deny {
		about := "at " + d.cfg.At(fmt.Sprintf("deny[%d]", i)).String()
		for _, l := range d.lines {
			if l.id == id {
				about = strings.TrimRight("since "+l.since.Format(time.RFC3339)+"  "+l.reason, " ")
			}
		}
		fmt.Fprintf(&b, "%s  %s\n", id, about)
	}
	_, err = io.WriteString(c.out, printable(b.String()))
	return err
}

// denial is one line of the commands' own file.
type denial struct {
	id     spiffeid.ID
	since  time.Time
	reason string
}

// denials is the deny list, and the part of it that these commands keep.
type denials struct {
	flag  configFlag
	cfg   *config.Config
	file  string
	lines []denial
}

const denialsHead = "# Kept by `ward deny`; use that, or your own `deny:` in another file.\ndeny:\n"

var denialLine = regexp.MustCompile(`^  - (spiffe://\S+)  # (\S+)(?: (.*))?$`)

// change reads the deny list for one command at a time: of two that read it at once, the later would undo what the
// earlier has told its operator. done lets the next one in.
func (f configFlag) change(ctx context.Context) (d *denials, done func(), err error) {
	path, err := f.path()
	if err != nil {
		return nil, nil, err
	}
	// Nobody else may open the lock, or anybody could hold it.
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(path), ".ward-deny.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*takeTime)
	defer cancel()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil { //nolint:gosec // a descriptor fits
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
			continue
		case <-ctx.Done():
		}
		_ = lock.Close()
		return nil, nil, fmt.Errorf("another ward deny is at work on %s", path)
	}
	if d, err = f.denials(); err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	return d, func() { _ = lock.Close() }, nil
}

func (f configFlag) denials() (*denials, error) {
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	d := &denials{flag: f, cfg: cfg, file: filepath.Join(filepath.Dir(cfg.File()), "conf.d", "ward-deny.yaml")}
	text, err := os.ReadFile(d.file)
	if errors.Is(err, os.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	edited := fmt.Errorf("%s was edited by hand; move its lines to another file in that folder", d.file)
	rest, ok := bytes.CutPrefix(text, []byte(denialsHead))
	if !ok {
		return nil, edited
	}
	for line := range strings.Lines(string(rest)) {
		m := denialLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			return nil, edited
		}
		id, err := spiffeid.FromString(m[1])
		since, err2 := time.Parse(time.RFC3339, m[2])
		if err != nil || err2 != nil {
			return nil, edited
		}
		d.lines = append(d.lines, denial{id, since, m[3]})
	}
	return d, nil
}

// id reads an ID as config does.
func (d *denials) id(s string) (spiffeid.ID, error) {
	if strings.HasPrefix(s, "/") {
		return spiffeid.FromPath(d.cfg.TrustDomain, s)
	}
	return spiffeid.FromString(s)
}

// apply writes the file, whole, and waits until the running roles have it in force.
func (d *denials) apply(c *console, done string) error {
	var b strings.Builder
	b.WriteString(denialsHead)
	for _, l := range d.lines {
		fmt.Fprintf(&b, "  - %s  # %s\n", l.id, strings.TrimRight(l.since.Format(time.RFC3339)+" "+l.reason, " "))
	}
	dir := filepath.Dir(d.file)
	switch err := os.Mkdir(dir, 0o755); { //nolint:gosec // the daemons' users read it
	case err == nil: // whatever the umask of whoever runs this
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the daemons' users read it
			return err
		}
	case !errors.Is(err, os.ErrExist):
		return err
	}
	if len(d.lines) == 0 {
		if err := errors.Join(os.Remove(d.file), syncDir(dir)); err != nil {
			return err
		}
	} else if err := replaceFile(d.file, b.String()); err != nil {
		return err
	}
	start := time.Now()
	cfg, err := d.flag.load()
	if err != nil {
		return listErrors(c.err, err)
	}
	taken, waiting, err := inForce(c.ctx, cfg, takeTime)
	switch {
	case err != nil:
		return fmt.Errorf("%s is written, but not everywhere in force: %s: %w; see: ward status", d.file, strings.Join(waiting, ", "), err)
	case len(taken) == 0:
		_, err = fmt.Fprintf(c.out, "%s from the next start on: no daemon answers\n", done)
	default:
		_, err = fmt.Fprintf(c.out, "%s: in force in %s after %s\n", done, strings.Join(taken, ", "), time.Since(start).Round(time.Millisecond))
	}
	return err
}

// replaceFile puts a new file in the old one's place, durably, so that nobody reads half of it. The daemons' users can
// read it whatever the umask: one that they could not would keep them from starting.
func replaceFile(path, text string) (err error) {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o644) //nolint:gosec // as above
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil { //nolint:gosec // as above
		err = os.Rename(temp, path)
	}
	if err != nil { // a disk that is full, most likely: what was there stays
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes what was renamed or removed in a folder survive a loss of power.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // this file system has nothing to do
	}
	return errors.Join(err, f.Close())
}

// takeTime is how long the roles may take to take a new config.
const takeTime = 5 * time.Second

// inForce waits until every role that runs uses cfg. It gives the roles that do, and those that do not, or do not say. A
// round of questions that the end of the patience cuts short says nothing about those who were not heard any more: the
// one before it counts.
func inForce(ctx context.Context, cfg *config.Config, patience time.Duration) (taken, waiting []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		var now, not []string
		for _, role := range []config.Role{config.RoleAgent, config.RoleEgress, config.RoleIngress, config.RoleMesh} {
			socket := cfg.AdminSocket(role)
			var st admin.Status
			switch err := admin.Get(ctx, socket, "/status", &st); {
			case err == nil && st.Config == cfg.Digest():
				now = append(now, st.Role)
			case err == nil:
				not = append(not, st.Role)
			case !nobodyListens(socket): // it hangs, or may not be asked: it may well go on with the old config
				not = append(not, string(role)+" (does not answer)")
			}
		}
		if ctx.Err() == nil && len(not) == 0 {
			return now, nil, nil
		}
		if ctx.Err() == nil || len(waiting) == 0 {
			taken, waiting = now, not
		}
		select {
		case <-ctx.Done():
			return taken, waiting, errors.New("the new config has not been taken")
		case <-time.After(pause):
		}
	}
}

// nobodyListens reports whether it is certain that no process serves the socket.
func nobodyListens(socket string) bool {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}
