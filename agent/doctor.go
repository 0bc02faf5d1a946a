package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/doctor"
)

type doctorCommand struct {
	configFlag
	Codes    []string `arg:"" optional:"" name:"code" help:"Checks to make, such as W0901; all of them without one."`
	Verbose  bool     `short:"v" help:"List what is in order, too, and why a check was skipped."`
	JSON     bool     `help:"One JSON object, schema ward.doctor/1."`
	Online   bool     `help:"Make the checks that ask other hosts, too."`
	Explain  string   `placeholder:"CODE" help:"Explain a code, such as W0901, and do nothing else."`
	Discover bool     `help:"Look at who serves and who calls FHIR on this host, and propose a config on stdout; nothing is changed."`
	Probe    bool     `help:"With --discover: ask what may be a FHIR server for /metadata, over loopback."`
	Report   bool     `help:"Print what a bug report needs, as JSON without patients, users or secrets."`
}

// Validate refuses what no check could answer, as a mistake in the command line.
func (cmd doctorCommand) Validate() error {
	for _, code := range cmd.Codes {
		if !slices.Contains(doctor.Codes(), code) {
			return fmt.Errorf("the doctor has no check %q; all are listed by: ward doctor -v", code)
		}
	}
	if cmd.Probe && !cmd.Discover {
		return errors.New("--probe goes with --discover")
	}
	return nil
}

// Run exits 1 when a check has failed; warnings and skipped checks alone do not.
func (cmd doctorCommand) Run(c *console) error {
	switch {
	case cmd.Explain != "":
		page, ok := doctor.Explain(cmd.Explain)
		if !ok {
			return fmt.Errorf("the doctor has no code %q; its codes look like W0901", cmd.Explain)
		}
		_, err := io.WriteString(c.out, page+"\n")
		return err
	case cmd.Discover:
		return cmd.discover(c)
	}
	cfg, err := cmd.load()
	path, _ := cmd.path() // "" where none exists, which err says
	r, err := doctor.Run(c.ctx, doctor.Options{Config: cfg, Path: path, Broken: err, Host: doctor.ThisHost(),
		Version: versionText(), Codes: cmd.Codes, Online: cmd.Online})
	if err != nil {
		return err
	}
	switch {
	case cmd.Report:
		err = json.NewEncoder(c.out).Encode(doctor.Bundle(c.ctx, r))
	case cmd.JSON:
		err = json.NewEncoder(c.out).Encode(r)
	default:
		err = r.Write(c.out, cmd.Verbose)
	}
	if err == nil && r.Failures > 0 {
		return errSilent
	}
	return err
}

// discover proposes a config. What is proposed is checked here, so that nobody is given one that Ward would refuse.
func (cmd doctorCommand) discover(c *console) error {
	host := doctor.ThisHost()
	seen, err := doctor.Discover(c.ctx, host, doctor.DiscoverOptions{Probe: cmd.Probe})
	if err != nil {
		return err
	}
	if cmd.JSON {
		return json.NewEncoder(c.out).Encode(seen)
	}
	proposal := seen.Propose(time.Now())
	if err := config.Check("ward.yaml", proposal); err != nil {
		return fmt.Errorf("no config can be proposed for what was found: %w", err)
	}
	_, err = c.out.Write(proposal)
	return err
}
