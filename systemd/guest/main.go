// Command guest tries Ward's packages and units on a real system: a Debian that boots, with systemd as its process 1,
// in a container of its own.
//
// It makes a small Debian with debootstrap (once: a tarball is kept in the cache folder), boots it with systemd-nspawn,
// and follows the words of systemd/README.md from the package to the first call that Ward has verified. A FHIR server
// and an OpenID Provider run in it as units of their own users, and an application of another user calls them through
// Ward. Then it looks at what the running units may do, takes each privilege away to see what stops working, kills each
// unit under load, upgrades under load, removes and purges.
//
// Nothing of the host changes: the guest has its own mounts, network, processes, users and a branch of the control group
// tree that goes with it. What it does to the host is to install debootstrap and systemd-container where they lack.
//
//	go run ./systemd/guest                 # all of it; needs root
//	go run ./systemd/guest -run kill -v    # the checks whose names match, after what they need
//	go run ./systemd/guest -keep           # leave the guest running at the end, and say how to enter it
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

type options struct {
	verbose, keep bool
	only          *regexp.Regexp
	cache         string
	mirror        string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "load" { // in the guest, as the application
		os.Exit(load(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	var only string
	flags := flag.NewFlagSet("guest", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.verbose, "v", false, "show what is run in the guest")
	flags.BoolVar(&o.keep, "keep", false, "leave the guest running")
	flags.StringVar(&only, "run", "", "only the checks whose names match this `expression`, and what they need")
	flags.StringVar(&o.cache, "cache", "", "`folder` for the Debian (default $XDG_CACHE_HOME/ward-ci)")
	flags.StringVar(&o.mirror, "mirror", "", "Debian mirror (default debootstrap's own)")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		fmt.Fprintln(stderr, "guest:", err)
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stdout, "SKIPPED  the guest: needs root")
		return 0
	}
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			fmt.Fprintln(stderr, "guest:", err)
			return 1
		}
		o.cache = filepath.Join(dir, "ward-ci")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := tryAll(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "guest:", err)
		return 1
	}
	return 0
}

// tryAll prepares the guest, makes the checks in their order, and leaves nothing behind.
func tryAll(ctx context.Context, o options, out io.Writer) (err error) {
	work, err := os.MkdirTemp("", "ward-guest-")
	if err != nil {
		return err
	}
	defer func() {
		if !o.keep {
			err = errors.Join(err, os.RemoveAll(work))
		}
	}()
	begun := time.Now()
	p, err := build(ctx, work)
	if err != nil {
		return err
	}
	built := time.Now()
	g := &guest{dir: work, tree: filepath.Join(work, "tree"), out: io.Discard}
	if o.verbose {
		g.out = out
	}
	if err := g.unpack(ctx, o); err != nil {
		return err
	}
	if err := p.putInto(g.tree); err != nil {
		return err
	}
	unpacked := time.Now()
	if err := g.boot(ctx); err != nil {
		return err
	}
	if !o.keep {
		defer func() { err = errors.Join(err, g.stop()) }()
	}
	fmt.Fprintf(out, "built in %.1fs, unpacked in %.1fs, booted in %.1fs\n", built.Sub(begun).Seconds(), unpacked.Sub(built).Seconds(), time.Since(unpacked).Seconds())
	w := &world{guest: g, parts: p, ctx: ctx}
	failed := 0
	for _, c := range checks() {
		if !c.needed && !o.only.MatchString(c.name) {
			continue
		}
		start := time.Now()
		said, err := c.try(w)
		word := "ok    "
		if err != nil {
			word = "FAILED"
			failed++
		}
		fmt.Fprintf(out, "%s  %-8s %5.1fs  %s\n", word, c.name, time.Since(start).Seconds(), strings.Join(said, "; "))
		if err != nil {
			fmt.Fprintf(out, "%s\n", indent(err.Error()))
			if c.needed {
				break
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if failed > 0 {
		fmt.Fprintf(out, "%s\n", indent(w.journal()))
		err = fmt.Errorf("%d checks failed", failed)
	}
	if o.keep {
		fmt.Fprintf(out, "the guest runs on: nsenter -t %d -a  (end it: systemctl poweroff in it; then rm -r %s)\n", g.leader, work)
	} else {
		fmt.Fprintf(out, "in %.0fs\n", time.Since(begun).Seconds())
	}
	return err
}

func indent(s string) string {
	return "        " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n        ")
}
