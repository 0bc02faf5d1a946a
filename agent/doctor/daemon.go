package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
)

// status is what a daemon says of itself. What only some versions and roles say is zero elsewhere.
type status struct {
	admin.Status
	Audit trail `json:"audit"`
}

type trail struct {
	admin.Audit
	Second      bool  `json:"second_in_use"`
	ReserveUsed bool  `json:"reserve_in_use"`
	Folded      int64 `json:"folded"` // refusals that were only counted
}

// role is a part of Ward that has an admin socket on this host.
type role struct {
	name   config.Role
	socket string
	status *status // nil where it does not answer
	denied bool    // to this user
	absent bool    // there is no socket
	err    error
}

// daemons asks every admin socket of the config for its status, once.
func (x *examination) daemons(ctx context.Context) []role {
	if x.roles != nil {
		return x.roles
	}
	for _, name := range []config.Role{config.RoleAgent, config.RoleEgress, config.RoleIngress, config.RoleMesh} {
		r := role{name: name, socket: x.cfg.AdminSocket(name)}
		info, err := os.Stat(x.host.in(r.socket))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			r.absent = true
		case errors.Is(err, fs.ErrPermission):
			r.denied = true
		case err == nil && info.Mode()&fs.ModeSocket == 0:
			r.err = errors.New("it is no socket")
		default:
			s := new(status)
			asked, cancel := context.WithTimeout(ctx, time.Second)
			if err := x.host.Get(asked, x.host.in(r.socket), "/status", s); err != nil {
				r.err = err
				r.denied = strings.Contains(err.Error(), "permission denied")
			} else {
				r.status = s
			}
			cancel()
		}
		x.roles = append(x.roles, r)
	}
	return x.roles
}

// title is the role as it calls itself: on the socket of one role another can answer that holds it (run, proxy).
func (r role) title() string {
	if r.status != nil && r.status.Role != "" {
		return r.status.Role
	}
	return string(r.name)
}

// unit is the role's unit.
func (r role) unit() string {
	if r.title() == string(config.RoleRun) {
		return "ward.service"
	}
	return "ward-" + r.title() + ".service"
}

// answering is the roles whose status is known.
func (x *examination) answering(ctx context.Context) []role {
	return slices.DeleteFunc(slices.Clone(x.daemons(ctx)), func(r role) bool { return r.status == nil })
}

func daemonAnswers(ctx context.Context, x *examination) []Finding {
	roles := x.daemons(ctx)
	if len(x.answering(ctx)) > 0 {
		return nil
	}
	if slices.ContainsFunc(roles, func(r role) bool { return r.denied }) {
		return skip("need root or the group " + admin.Group + " (sudo ward doctor)")
	}
	return []Finding{fail("no daemon answers on "+roles[0].socket, "no identity is given out, and no call is served", "systemctl start ward-agent, or: ward run --config "+quoted(x.Path))}
}

// rolesAnswer looks at sockets that are there and silent. A role whose socket is absent is not one of this host.
func rolesAnswer(ctx context.Context, x *examination) []Finding {
	if len(x.answering(ctx)) == 0 {
		return nil // daemonAnswers says so
	}
	var out []Finding
	for _, r := range x.daemons(ctx) {
		if r.status == nil && !r.absent && !r.denied {
			out = append(out, fail("ward "+r.title()+" does not answer on "+r.socket, "its part of Ward is down", "systemctl status "+r.unit()+"; systemctl restart "+r.unit()))
		}
	}
	return out
}

func oneVersion(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		if r.status.Version != x.Version {
			out = append(out, warn(fmt.Sprintf("ward %s runs version %s; this program is %s", r.title(), r.status.Version, x.Version), "an upgrade has not reached it, or this is not the installed program",
				"systemctl restart "+r.unit()))
		}
	}
	return out
}

// runsThisConfig compares what runs with what is on disk: by its digest where the daemon gives one, and else by
// whether a file is younger than the daemon.
func runsThisConfig(ctx context.Context, x *examination) []Finding {
	files, err := configFiles(x.Path)
	if err != nil {
		return skip("cannot read the config's files")
	}
	var out []Finding
	for _, r := range x.answering(ctx) {
		const means = "what is on disk is not what decides; a restart would change it"
		mend := "systemctl reload " + r.unit() + ", or see in its log why it refused the config"
		if r.status.Config != "" {
			if r.status.Config != x.cfg.Digest() {
				out = append(out, warn("ward "+r.title()+" runs a config other than "+x.Path, means, mend))
			}
			continue
		}
		for _, f := range files {
			if info, err := os.Stat(f); err == nil && info.ModTime().After(r.status.Started) {
				out = append(out, warn(fmt.Sprintf("%s was changed after ward %s started", f, r.title()), means, mend))
				break
			}
		}
	}
	return out
}

// configFiles is the files of which a config is made, in the order in which they are read.
func configFiles(path string) ([]string, error) {
	files := []string{path}
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(path), "conf.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".yaml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(filepath.Dir(path), "conf.d", e.Name()))
		}
	}
	return files, nil
}

func trailWorks(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		if r.status.Audit.Error != "" {
			out = append(out, fail(fmt.Sprintf("the audit log of ward %s takes no records: %s", r.title(), r.status.Audit.Error), "what cannot be recorded does not happen: calls are refused",
				"df -h "+quoted(r.status.Audit.Dir)+"; free space there, or mend the disk"))
		}
	}
	return out
}

// manyFolded is how many refusals that were only counted are worth a look.
const manyFolded = 10000

func pressure(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		a := r.status.Audit
		if a.Second {
			out = append(out, warn(fmt.Sprintf("ward %s records into its second audit log", r.title()), "the first one failed, and there is none left behind this one", "df -h "+quoted(a.Dir)+"; mend that disk"))
		}
		if a.ReserveUsed {
			out = append(out, fail(fmt.Sprintf("ward %s records into the emergency reserve", r.title()), "only emergency treatment and break-glass are served", "df -h "+quoted(a.Dir)+"; free space there"))
		}
		if a.Folded > manyFolded {
			out = append(out, warn(fmt.Sprintf("ward %s has folded %d refusals into summaries", r.title(), a.Folded), "somebody is refused far more often than is recorded one by one: an application in a loop, or an attack",
				"ward audit tail, and look for the caller that is refused"))
		}
	}
	return out
}

// problems hands on what a daemon says of itself and no other check looks at.
func problems(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		for _, p := range r.status.Problems {
			out = append(out, warn("ward "+r.title()+" reports: "+p, "it is degraded", "ward status --socket "+quoted(r.socket)))
		}
	}
	return out
}
