package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// Reload makes next the config that holds: entries, services, callers, issuers, bindings, policies and the deny list,
// all of it or, with an error, nothing. Calls that run go on under the rules with which they began, unless the change
// takes the ground from under them: an identity that is denied or gone ends at once.
func (d *Daemon) Reload(ctx context.Context, next *config.Config) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if !d.running {
		return errors.New("the daemon is starting or shutting down")
	}
	if d.o.Reloading != nil {
		d.o.Reloading()
	}
	if d.o.Reloaded != nil {
		defer d.o.Reloaded()
	}
	start := time.Now()
	was := d.config()
	policies, err := d.change(ctx, was, next)
	if err != nil {
		d.keep(err)
		return err
	}
	d.refused.Store(nil)
	if was.Digest() == next.Digest() && !policies {
		return nil
	}
	r := d.lifecycle("config changed")
	r.Detail += "; " + difference(was, next)
	d.event(r)
	d.log.Info("config changed", zap.String("config", next.Digest()), zap.String("what", difference(was, next)), zap.Duration("took", time.Since(start)))
	return nil
}

// unread says that what is on disk is no config, to whoever has asked for it to be read, too.
func (d *Daemon) unread(err error) {
	if d.o.Reloading != nil {
		d.o.Reloading()
	}
	d.keep(err)
	if d.o.Reloaded != nil {
		d.o.Reloaded()
	}
}

// keep says, once for each reason, that the config on disk is not used.
func (d *Daemon) keep(err error) {
	why := err.Error()
	if old := d.refused.Swap(&why); old != nil && *old == why {
		return
	}
	first, more, _ := strings.Cut(why, "\n")
	r := d.lifecycle("config refused")
	r.Effect, r.Detail = proxy.EffectError, r.Detail+" stays in force; "+first
	if more != "" {
		r.Detail += fmt.Sprintf(" (and %d more)", strings.Count(more, "\n")+1)
	}
	d.event(r)
	d.log.Error("the config on disk is refused; the one in force stays", zap.Error(err))
}

// change does the work, and reports whether the policies are others. What can fail comes first and is undone; from the
// first step that is seen outside on, nothing can fail any more.
func (d *Daemon) change(ctx context.Context, was, next *config.Config) (policies bool, err error) {
	if err := fixed(was, next); err != nil {
		return false, err
	}
	if missing := d.sandbox.Missing(next); len(missing) > 0 {
		return false, fmt.Errorf("%s: this process has given up the right %s; a restart takes it up again", next.File(), strings.Join(missing, ", "))
	}
	var undo []func()
	defer func() {
		if err != nil {
			for _, back := range slices.Backward(undo) {
				back()
			}
		}
	}()
	var r *rules
	var served []opening
	if d.ingress != nil {
		if r, err = d.newRules(next, d.ingress.rules.Load()); err != nil {
			return false, err
		}
		undo = append(undo, func() { r.discard(d.ingress.rules.Load()) })
		// The ward of a new service needs its identity before it can be opened, and this process is the one to give it.
		if d.attestsAlone() {
			if err := d.directory.load(was, d.entries, union(d.enrolled(was), d.enrolled(next))); err != nil {
				return false, err
			}
			undo = append(undo, func() { _ = d.directory.load(was, d.entries, d.enrolled(was)) })
		}
		ctx, cancel := context.WithTimeout(ctx, reloadTime)
		defer cancel()
		if served, err = d.ingress.prepare(ctx, next, r, false); err != nil {
			return false, err
		}
		undo = append(undo, func() { abandon(served) })
	}
	var sockets map[*proxy.Service]net.Listener
	if d.egress != nil {
		if sockets, err = d.egress.prepare(next); err != nil {
			return false, err
		}
		undo = append(undo, func() { discard(sockets) })
	}
	if asksForHash(next) { // before there are entries that processes are matched with
		d.hashes.Store(true)
		undo = append(undo, func() { d.hashes.Store(asksForHash(was)) })
	}
	if err := d.directory.load(next, d.entries, d.enrolled(next)); err != nil {
		return false, err
	}
	d.hashes.Store(asksForHash(next))
	if d.ingress != nil {
		policies = d.ingress.rules.Load().hash() != r.hash()
		d.ingress.apply(next, r, served)
	}
	if d.egress != nil {
		d.egress.apply(next, sockets)
	}
	d.use(next) // last: whoever sees in the status that it holds must find cut what it denies
	return policies, nil
}

// union is a with those of b whose names are not in it.
func union(a, b []*workload.Entry) []*workload.Entry {
	out := slices.Clone(a)
	for _, e := range b {
		if !slices.ContainsFunc(a, func(x *workload.Entry) bool { return x.Name == e.Name }) {
			out = append(out, e)
		}
	}
	return out
}

// reloadTime bounds the wait for the identities of new services.
const reloadTime = 10 * time.Second

// fixed refuses what takes a new start.
func fixed(was, next *config.Config) error {
	var changed []string
	for _, k := range []struct {
		key      string
		old, new any
	}{
		{"trust_domain", was.TrustDomain, next.TrustDomain},
		{"authority", was.Authority, next.Authority},
		{"agent.socket", was.Agent.Socket, next.Agent.Socket},
		{"agent.broker", was.Agent.Broker, next.Agent.Broker},
		{"agent.state", was.Agent.State, next.Agent.State},
		{"admin", was.Admin, next.Admin},
		{"audit", was.Audit, next.Audit},
		{"monitor", was.Monitor, next.Monitor},
		{"mesh", was.Mesh, next.Mesh},
		{"log", was.Log, next.Log},
	} {
		if !reflect.DeepEqual(k.old, k.new) {
			changed = append(changed, k.key)
		}
	}
	if len(changed) > 0 {
		return fmt.Errorf("%s: a change of %s takes a restart, and until then nothing else of this config is used either; restart the daemon, or take the change back",
			next.At(changed[0]), strings.Join(changed, ", "))
	}
	return nil
}

// difference says what has changed, for the trail: identities by their names, the rest by number.
func difference(was, next *config.Config) string {
	var parts []string
	say := func(what string, added, gone []string) {
		if n := len(added) + len(gone); n > 0 && n <= 8 {
			for _, a := range added {
				parts = append(parts, what+" +"+a)
			}
			for _, g := range gone {
				parts = append(parts, what+" -"+g)
			}
		} else if n > 0 {
			parts = append(parts, fmt.Sprintf("%s +%d -%d", what, len(added), len(gone)))
		}
	}
	ids := func(list []spiffeid.ID) map[string]any {
		m := map[string]any{}
		for _, id := range list {
			m[id.String()] = true
		}
		return m
	}
	added, gone, _ := compare(ids(was.Deny), ids(next.Deny))
	say("denied", added, gone)
	workloads := func(c *config.Config) map[string]any {
		m := map[string]any{}
		for _, w := range c.Workloads {
			m[w.Name] = w
		}
		return m
	}
	added, gone, edited := compare(workloads(was), workloads(next))
	say("workload", added, gone)
	say("workload edited", edited, nil)
	named := func(c *config.Config) map[string]any {
		m := map[string]any{}
		for _, s := range c.Services {
			m[s.Name] = s
		}
		return m
	}
	added, gone, edited = compare(named(was), named(next))
	say("service", added, gone)
	say("service edited", edited, nil)
	for _, k := range []struct {
		name     string
		old, new any
	}{{"tokens", was.Tokens, next.Tokens}, {"bindings", was.Bindings, next.Bindings}, {"devices", was.Devices, next.Devices}} {
		if !reflect.DeepEqual(k.old, k.new) {
			parts = append(parts, k.name+" edited")
		}
	}
	if len(parts) == 0 {
		return "policies or words only"
	}
	return strings.Join(parts, ", ")
}

func compare(was, next map[string]any) (added, gone, edited []string) {
	for k, v := range next {
		if old, there := was[k]; !there {
			added = append(added, k)
		} else if !reflect.DeepEqual(old, v) {
			edited = append(edited, k)
		}
	}
	for k := range was {
		if _, there := next[k]; !there {
			gone = append(gone, k)
		}
	}
	slices.Sort(added)
	slices.Sort(gone)
	slices.Sort(edited)
	return added, gone, edited
}
