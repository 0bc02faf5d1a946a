package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/audit"
	"github.com/wardmesh/ward/proxy/policy"
)

type policyCommands struct {
	Explain  explainCommand  `cmd:"" help:"Say why a call was decided as it was."`
	Observed observedCommand `cmd:"" help:"Say what enforcing would have refused, of services that are only observed."`
	Replay   replayCommand   `cmd:"" help:"Say what other policies would have changed on recorded calls."`
}

type explainCommand struct {
	configFlag
	Decision string `arg:"" name:"decision-id" help:"The decision's id, or its beginning."`
}

// Run looks the decision up in the trail, and decides again on the facts that stand there with the policies of then.
func (cmd explainCommand) Run(c *console) error {
	cfg, err := cmd.load()
	if err != nil {
		return err
	}
	dirs := trails(cfg)
	var records []proxy.Record
	for _, dir := range dirs {
		some, err := audit.Find(c.ctx, dir, cmd.Decision)
		if err != nil {
			return err
		}
		records = append(records, some...)
	}
	decisions := map[string][]proxy.Record{}
	var ids []string
	for _, r := range records {
		if len(decisions[r.Decision]) == 0 {
			ids = append(ids, r.Decision)
		}
		decisions[r.Decision] = append(decisions[r.Decision], r)
	}
	switch len(ids) {
	case 0:
		return fmt.Errorf("no decision %s in %s; was the call made through this host? (ward audit tail)", audit.Escape(cmd.Decision), strings.Join(dirs, " or "))
	case 1:
		return explain(c.out, cfg, decisions[ids[0]])
	}
	return fmt.Errorf("%d decisions begin with %s: %s", len(ids), audit.Escape(cmd.Decision), audit.Escape(strings.Join(ids[:min(len(ids), 5)], ", ")))
}

// explain writes what the trail knows of one decision, and for a call that reached the policies, their working.
func explain(w io.Writer, cfg *config.Config, records []proxy.Record) error {
	first, last := records[0], records[len(records)-1]
	var b strings.Builder
	verdict := map[string]string{"allow": "ALLOWED", "deny": "REFUSED", "error": "FAILED"}[last.Effect]
	if verdict == "" {
		verdict = "RELAYED"
	}
	would := last.Would
	if would != nil && last.Cause == "" {
		verdict = map[string]string{"deny": "WOULD REFUSE", "error": "WOULD FAIL", proxy.EffectNarrow: "WOULD NARROW"}[would.Effect]
		if would.Status != 0 {
			verdict += fmt.Sprintf(" %d", would.Status)
		}
		verdict += "; only observed, and answered"
	}
	if last.Status != 0 { // a defect ends a call without an answer
		verdict += fmt.Sprintf(" %d", last.Status)
	}
	fmt.Fprintf(&b, "%s  %s", verdict, first.Time.UTC().Format(time.RFC3339))
	if first.PolicySet != "" {
		fmt.Fprintf(&b, "  policy set %s", audit.Escape(first.PolicySet))
	}
	b.WriteByte('\n')
	who := first.Caller
	if _, path, ok := strings.Cut(strings.TrimPrefix(who, "spiffe://"), "/"); ok {
		who = "/" + path
	}
	if who == "" {
		who = "(no identity) " + first.Remote
	}
	b.WriteString(audit.Escape(who))
	if first.User != "" {
		b.WriteString(" for " + audit.Escape(first.User))
	}
	for _, a := range first.Interactions {
		fmt.Fprintf(&b, "  %s %s", audit.Escape(a.Kind), audit.Escape(a.Type))
		if a.ID != "" {
			b.WriteString("/" + audit.Escape(a.ID))
		}
	}
	if first.Purpose != "" {
		b.WriteString("  purpose " + audit.Escape(first.Purpose))
	}
	b.WriteByte('\n')
	if last.Cause != "" && last.Cause != proxy.CausePolicy {
		fmt.Fprintf(&b, "stopped at %s: %s\n", audit.Escape(string(last.Cause)), audit.Escape(last.Detail))
	}
	if would != nil {
		if would.Cause != "" && would.Cause != proxy.CausePolicy {
			fmt.Fprintf(&b, "enforcing would have stopped at %s: %s\n", audit.Escape(string(would.Cause)), audit.Escape(would.Detail))
		} else if would.Cause == "" {
			fmt.Fprintf(&b, "enforcing would have narrowed the search %s, and the reply is within it\n", audit.Escape(would.Detail))
		}
		for _, c := range would.Also {
			fmt.Fprintf(&b, "and then at %s\n", audit.Escape(string(c)))
		}
	}
	if last.Peer != "" && last.Stage == proxy.StageEgress {
		fmt.Fprintf(&b, "decided by the service's own ward: %s\n", audit.Escape(last.Peer))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	for _, r := range records {
		if len(r.Inputs) == 0 {
			continue
		}
		set, err := policiesOfThen(cfg, r.PolicySet)
		if err != nil {
			return err
		}
		limited := would != nil && would.Cause == proxy.CauseLimit
		if (r.Effect == proxy.Allow.String() || r.Cause == proxy.CausePolicy) && !limited {
			if _, err := io.WriteString(w, "reached decide; caller, token and limits passed\n"); err != nil {
				return err
			}
		}
		e, err := policy.Explain(set, r.Inputs)
		if err != nil {
			return err
		}
		var working strings.Builder
		if _, err := e.WriteTo(&working); err != nil {
			return err
		}
		_, err = io.WriteString(w, printable(working.String()))
		return err
	}
	return nil
}

// policiesOfThen reads the copy of a policy set that the daemon kept. Its hash is its proof, whoever owns the files.
func policiesOfThen(cfg *config.Config, hash string) (*policy.Set, error) {
	dir := filepath.Join(daemon.PolicyStore(cfg), filepath.Base(hash))
	names, err := filepath.Glob(filepath.Join(dir, "*.cedar"))
	if err != nil {
		return nil, err
	}
	var files []policy.File
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			return nil, fmt.Errorf("policy set %s is not at hand: %w", hash, err)
		}
		files = append(files, policy.File{Name: filepath.Base(n), Content: b})
	}
	set, err := policy.Parse(files)
	if err != nil {
		return nil, fmt.Errorf("policy set %s in %s cannot be read: %w", hash, dir, err)
	}
	if set.Hash() != hash {
		return nil, fmt.Errorf("the policies in %s are not set %s any more: they were changed (they are %s now)", dir, hash, set.Hash())
	}
	return set, nil
}
