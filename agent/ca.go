package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/proxy/audit"
)

// The authority replaces its CAs by itself, long before they end. These commands show where that is, and are for the day
// on which somebody else may know a CA's key.

type caCommands struct {
	Status caStatusCommand `cmd:"" help:"Show the CAs of the trust domain, and what happens to them next."`
	Rotate caRotateCommand `cmd:"" help:"Replace the CA that signs: publish the next one, which signs once whoever verifies has it."`
	Retire caRetireCommand `cmd:"" help:"Take a CA that signs no more out of the bundle."`
}

type caStatusCommand struct {
	adminFlag
	JSON bool `help:"One JSON object, schema ward.ca/1."`
}

type caRotateCommand struct {
	adminFlag
	Force bool `help:"Let the next CA sign at once, for a CA whose key is known to others. Peers that have not fetched the bundle since refuse what it signs."`
}

type caRetireCommand struct {
	adminFlag
	Generation uint32 `arg:"" optional:"" name:"number" help:"Which CA (default: the oldest that signs no more)."`
	Force      bool   `help:"Retire it although SVIDs of it are valid, which are then refused everywhere and issued anew. For a CA whose key is known to others."`
}

// Run shows the CAs.
func (cmd caStatusCommand) Run(c *console) error {
	var cas admin.CAs
	if err := cmd.get(c, "/ca", &cas); err != nil {
		return err
	}
	if cmd.JSON {
		return json.NewEncoder(c.out).Encode(cas)
	}
	return writeCAs(c.out, cas, time.Now())
}

// Run takes the next step towards another CA, or both of them by force.
func (cmd caRotateCommand) Run(c *console) error {
	var cas admin.CAs
	if err := cmd.get(c, "/ca", &cas); err != nil {
		return err
	}
	next := caIn(cas, "prepared")
	var err error
	if next == nil {
		if cas, err = cmd.order(c, admin.CAOrder{Step: "prepare"}); err != nil {
			return err
		}
		if next = caIn(cas, "prepared"); next == nil {
			return errors.New("the authority has prepared a CA, and does not show it; see: ward ca status")
		}
		if !cmd.Force {
			_, err = fmt.Fprintf(c.out, "CA %d is published, and signs from %s on; nothing more is to be done\n", next.Generation, stamp(cas.NextAt))
			return err
		}
	}
	was := caIn(cas, "active")
	if cas, err = cmd.order(c, admin.CAOrder{Step: "activate", Force: cmd.Force}); err != nil {
		return err
	}
	advice := "it leaves the bundle when the last SVID that it signed has ended"
	if cmd.Force && was != nil {
		advice = fmt.Sprintf("when others know its key: ward ca retire %d --force", was.Generation)
	}
	_, err = fmt.Fprintf(c.out, "CA %d signs; the key of the CA before it is destroyed; %s\n", next.Generation, advice)
	return err
}

// Run retires a CA.
func (cmd caRetireCommand) Run(c *console) error {
	var cas admin.CAs
	if err := cmd.get(c, "/ca", &cas); err != nil {
		return err
	}
	after, err := cmd.order(c, admin.CAOrder{Step: "retire", Generation: cmd.Generation, Force: cmd.Force})
	if err != nil {
		return err
	}
	for _, ca := range cas.CAs {
		if caOf(after, ca.Generation) == nil {
			_, err := fmt.Fprintf(c.out, "CA %d has left the bundle; what it signed is refused\n", ca.Generation)
			return err
		}
	}
	return nil
}

// order asks the daemon for a step.
func (f adminFlag) order(c *console, o admin.CAOrder) (admin.CAs, error) {
	socket := f.Socket
	if socket == "" {
		cfg, err := f.load()
		if err != nil {
			return admin.CAs{}, err
		}
		socket = cfg.Admin.Socket
	}
	return admin.Order(c.ctx, socket, o)
}

func caIn(cas admin.CAs, state string) *admin.CA {
	for i := range cas.CAs {
		if cas.CAs[i].State == state {
			return &cas.CAs[i]
		}
	}
	return nil
}

func caOf(cas admin.CAs, generation int) *admin.CA {
	for i := range cas.CAs {
		if cas.CAs[i].Generation == generation {
			return &cas.CAs[i]
		}
	}
	return nil
}

func writeCAs(w io.Writer, cas admin.CAs, now time.Time) error {
	rows := [][]string{{"CA", "STATE", "SINCE", "ENDS", "KEY", "KEPT"}}
	for _, ca := range cas.CAs {
		since, kept := ca.Published, "in the clear"
		switch {
		case ca.State == "old":
			since, kept = ca.Replaced, "destroyed"
		case ca.State == "active":
			since = ca.Activated
		}
		if ca.Sealed {
			kept = "sealed"
		}
		rows = append(rows, []string{fmt.Sprint(ca.Generation), ca.State, stamp(since), stamp(ca.Ends), ca.Key[:min(16, len(ca.Key))], kept})
	}
	var b strings.Builder
	if err := writeTable(&b, rows); err != nil {
		return err
	}
	when := "now"
	if left := cas.NextAt.Sub(now); left > 0 {
		when = fmt.Sprintf("at %s, in %s", stamp(cas.NextAt), short(left))
	}
	does := map[string]string{"prepare": "is published", "activate": "signs in place of the one before", "retire": "leaves the bundle"}[cas.Next]
	fmt.Fprintf(&b, "next: CA %d %s %s, by itself\n", cas.NextCA, audit.Escape(does), when)
	_, err := io.WriteString(w, b.String())
	return err
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
