// Command bench measures Ward beside the proxies that it finds on this machine: nginx, HAProxy, Caddy, ghostunnel and
// stunnel.
//
//	go run ./examples/bench                                # everybody, five rounds: about half an hour
//	go run ./examples/bench -peers nginx -rounds 1 -metrics cpu_per_request
//	go run ./examples/bench -scenario slow,upgrade         # Ward alone, under attack and while it is replaced
//
// # What
//
// Each proxy is a chain of two processes, as Ward's egress and ingress are: it takes an application's plain call, carries
// it over mutual TLS 1.3 to itself, and hands it to a FHIR server's Unix socket. Ward runs as its units run it, agent,
// egress and ingress apart, with attested callers, verified tokens, the policies of a clinic, a durable trail and
// metrics; the others forward. All of them stand ready at once, and their turns come one after another in each round.
//
// # Why so
//
// A machine is never the same for long: a figure of now and one of ten minutes ago are of two machines. So a ratio is of
// two figures of one round, and what is said is the median of the rounds' ratios with the smallest and the largest.
// Processor time is what the kernel has counted for the proxies' own processes; load generator and FHIR server are
// processes of their own, and do as little as they can. Delays count from when a call was to be sent, not from when a
// slow proxy let it be sent.
//
// README.md beside this file says what each figure is, and what it is not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options is the command line.
type options struct {
	peers     []string
	metrics   []string
	scenarios []string
	rounds    int
	duration  time.Duration
	conns     int
	idle      int
	rate      int
	front     string
	json      string
	svg       string
	dir       string
	ward      string
	keep      bool
}

// callers is how many users' load generators there are, each a workload of its own to Ward.
func (o *options) callers() int { return 1 + attackers }

func main() {
	// The kernel ends what this thread has started when it ends, however that comes about.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(args) == 1 && args[0] == "load":
		err = runLoad(ctx, stdin, stdout)
	case len(args) > 1 && args[0] == "origin":
		err = runOrigin(args[1:])
	default:
		var o *options
		if o, err = parse(args, stderr); err != nil {
			return 2
		}
		err = measureAll(ctx, o, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	peers := flags.String("peers", strings.Join(peerNames(), ","), "the `proxies` to measure Ward beside, as far as they are installed; none for Ward alone")
	metrics := flags.String("metrics", strings.Join(metricNames(), ","), "what to measure: `names` as in the table")
	scenarios := flags.String("scenario", "", "play these `scenarios` of slow and upgrade with Ward alone, instead of measuring")
	flags.IntVar(&o.rounds, "rounds", 5, "measure so `many` times, everybody in turn each time")
	flags.DurationVar(&o.duration, "duration", 4*time.Second, "how long one measurement of one proxy lasts")
	flags.IntVar(&o.conns, "connections", 64, "how many `calls` are under way at once under load")
	flags.IntVar(&o.idle, "idle", 2000, "how many idle `connections` to weigh")
	flags.IntVar(&o.rate, "rate", 1000, "`calls` a second where latency is measured")
	flags.StringVar(&o.front, "front", "unix", "by `what` applications reach the client hop: unix, by a socket, or tcp, on loopback")
	flags.StringVar(&o.json, "json", "", "write all figures to this `file`")
	flags.StringVar(&o.svg, "svg", "", "draw the ratios into this `file`")
	flags.StringVar(&o.dir, "dir", "", "`folder`, on a disk, in which a folder for the run is made (default $TMPDIR)")
	flags.StringVar(&o.ward, "ward", "", "a ward `binary` to measure, instead of one built from this repository")
	flags.BoolVar(&o.keep, "keep", false, "keep the folder with configs, logs and the audit trail, and say where it is")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	err := errors.Join(o.choose(&o.peers, *peers, peerNames(), "proxy"), o.choose(&o.metrics, *metrics, metricNames(), "metric"), o.choose(&o.scenarios, *scenarios, scenarioNames(), "scenario"))
	switch {
	case err != nil:
	case flags.NArg() > 0:
		err = fmt.Errorf("%q is no flag", flags.Arg(0))
	case o.front != "tcp" && o.front != "unix":
		err = errors.New("-front is tcp or unix")
	case o.rounds < 1 || o.conns < 1 || o.idle < 1 || o.rate < 1 || o.duration < 100*time.Millisecond:
		err = errors.New("-rounds, -connections, -idle and -rate are at least 1, -duration 100ms")
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
	}
	return o, err
}

// choose takes a list of names, all of them known.
func (o *options) choose(into *[]string, list string, known []string, what string) error {
	if list == "" || list == "none" {
		return nil
	}
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, k := range known {
			found = found || k == name
		}
		if !found {
			return fmt.Errorf("%s is no %s; they are: %s", name, what, strings.Join(known, ", "))
		}
		*into = append(*into, name)
	}
	return nil
}
