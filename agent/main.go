// Command ward gives every local process an identity that it cannot lend or fake, and lets a FHIR call through only
// when workload, user, request and behaviour are verified.
//
// This package is the command line: it parses words, finds the config and the sockets, calls the packages that do
// the work and prints what they say. stdout is the answer, stderr is everything else; the exit status is 0 when the
// thing asked for was done, 1 when it failed, 2 when the command line is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// commands is the whole command line, as kong reads it.
type commands struct {
	Up         upCommand         `cmd:"" help:"Show all of Ward on this machine: authority, agent, proxies, a FHIR server, an OpenID Provider, and workloads that call."`
	Run        runCommand        `cmd:"" help:"Run agent and both proxy hops in one process, for small hosts."`
	Agent      agentCommand      `cmd:"" help:"Run the identity side alone: attestation, the Workload API and the Broker API, the embedded authority."`
	Proxy      proxyCommand      `cmd:"" help:"Run a proxy hop alone, beside ward agent."`
	Upgrade    upgradeCommand    `cmd:"" help:"Let this binary, and the config as it is now, take the place of the proxy that runs, without a call that fails."`
	Mesh       meshCommands      `cmd:"" help:"Lead the mesh's addresses to egress, answer for its names, and make the host know them."`
	Check      checkCommand      `cmd:"" help:"Validate config and policies without starting anything; all errors at once."`
	Schema     schemaCommand     `cmd:"" help:"Print the JSON Schema of the config, or describe one key."`
	Svid       svidCommand       `cmd:"" help:"Show what this process gets from the Workload API."`
	Entries    entriesCommand    `cmd:"" help:"List who is enrolled and who holds what."`
	Status     statusCommand     `cmd:"" help:"Show the daemon's health, what expires, and what needs you."`
	Doctor     doctorCommand     `cmd:"" help:"Find misconfiguration and ways around Ward, and say how to mend each."`
	Deny       denyCommands      `cmd:"" help:"Refuse an identity at once, whatever certificate it shows."`
	Ca         caCommands        `cmd:"" help:"Show the CAs of the trust domain, and replace one."`
	Policy     policyCommands    `cmd:"" help:"Explain decisions."`
	Audit      auditCommands     `cmd:"" help:"Read and verify the audit trail."`
	Completion completionCommand `cmd:"" help:"Print a completion script for a shell."`
	Version    versionCommand    `cmd:"" help:"Print the version."`

	Workload workloadCommand `cmd:"" hidden:"" help:"One of the demonstration's workloads."`
}

// console is where a command speaks: out is the answer, err everything else.
type console struct {
	out, err io.Writer
	ctx      context.Context
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A reader that has gone away (ward audit tail | head) is an error of the write, which ends the command in order.
	signal.Ignore(syscall.SIGPIPE)
	// net/http quotes what a server sends unasked in the standard logger, and nobody may read patients' data there.
	log.SetOutput(io.Discard)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var cli commands
	exited := -1
	parser, err := kong.New(&cli,
		kong.Name("ward"),
		kong.Description("Identity for every process that touches health data, and a proxy that verifies every FHIR call.\n\nStart here: ward up"),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "ward:", err)
		return 1
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if exited >= 0 {
		return exited // --help
	}
	if err != nil {
		fmt.Fprintf(stderr, "ward: %v; see: ward --help\n", err)
		return 2
	}
	err = k.Run(&console{stdout, stderr, ctx}, parser)
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE):
		return 0
	case errors.Is(err, errSilent):
		return 1
	}
	fmt.Fprintln(stderr, "ward:", printable(err.Error()))
	return 1
}

// errSilent ends a command with status 1 when everything has been said already.
var errSilent = errors.New("failed")
