package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/wardmesh/ward/proxy/audit"
)

// defaultWorkloadSocket is where an installed agent listens.
const defaultWorkloadSocket = "/run/ward/agent/workload.sock"

type svidCommand struct {
	X509   svidX509Command   `cmd:"" name:"x509" help:"The X.509-SVIDs of this process."`
	Bundle svidBundleCommand `cmd:"" help:"The bundles that this process may trust."`
}

type socketFlag struct {
	Socket string        `env:"SPIFFE_ENDPOINT_SOCKET" placeholder:"S" help:"Workload API socket, a path or unix:PATH (default: the installed agent's, else that of ward up)."`
	Wait   time.Duration `default:"5s" help:"How long to wait for the first answer."`
}

// address gives the socket as SPIFFE spells it.
func (f socketFlag) address() string {
	path := f.Socket
	if path == "" {
		path = defaultWorkloadSocket
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if cfg, err := (configFlag{}).load(); err == nil {
				path = cfg.Agent.Socket
			}
		}
	}
	if filepath.IsAbs(path) {
		return "unix://" + path
	}
	return path
}

// explain says why the Workload API gave nothing.
func (f socketFlag) explain(err error) error {
	s := f.address()
	switch st := status.Convert(err); {
	case st.Code() == codes.PermissionDenied:
		return fmt.Errorf("%s", st.Message())
	case st.Code() == codes.Unavailable || errors.Is(err, context.DeadlineExceeded) || st.Code() == codes.DeadlineExceeded:
		return fmt.Errorf("cannot reach the Workload API on %s (you are uid %d): %s; start the agent with ward run --config FILE or ward up, or name its socket with --socket", s, os.Getuid(), st.Message())
	}
	return fmt.Errorf("%s: %w", s, err)
}

type svidX509Command struct {
	socketFlag
	Watch bool   `help:"Stay, and print each change."`
	Write string `type:"path" placeholder:"DIR" help:"Write svid.pem, key.pem (0600) and bundle.pem into DIR."`
}

func (cmd svidX509Command) Run(c *console) error {
	client, err := workloadapi.New(c.ctx, workloadapi.WithAddr(cmd.address()))
	if err != nil {
		return cmd.explain(err)
	}
	defer func() { _ = client.Close() }()
	if !cmd.Watch {
		ctx, cancel := context.WithTimeout(c.ctx, cmd.Wait)
		defer cancel()
		got, err := client.FetchX509Context(ctx)
		if err != nil {
			return cmd.explain(err)
		}
		return cmd.show(c, got)
	}
	w := &svidWatcher{c: c, cmd: cmd}
	err = client.WatchX509Context(c.ctx, w) // ends with an error, always
	if c.ctx.Err() != nil {
		return w.err
	}
	return cmd.explain(err)
}

type svidWatcher struct {
	c   *console
	cmd svidX509Command
	err error
}

func (w *svidWatcher) OnX509ContextUpdate(got *workloadapi.X509Context) { w.err = w.cmd.show(w.c, got) }
func (w *svidWatcher) OnX509ContextWatchError(err error) {
	if w.c.ctx.Err() == nil {
		fmt.Fprintln(w.c.err, "ward:", w.cmd.explain(err))
	}
}

func (cmd svidX509Command) show(c *console, got *workloadapi.X509Context) error {
	for i, s := range got.SVIDs {
		leaf := s.Certificates[0]
		note := ""
		if i == 0 && len(got.SVIDs) > 1 {
			note = "  (default)"
		}
		if s.Hint != "" {
			note += "  hint " + audit.Escape(s.Hint)
		}
		if _, err := fmt.Fprintf(c.out, "%s  until %s  serial %032x%s\n", s.ID, leaf.NotAfter.UTC().Format(time.RFC3339), leaf.SerialNumber, note); err != nil {
			return err
		}
	}
	if cmd.Write == "" {
		return nil
	}
	bundle, err := got.Bundles.GetX509BundleForTrustDomain(got.DefaultSVID().ID.TrustDomain())
	if err != nil {
		return err
	}
	return writeSVID(cmd.Write, got.DefaultSVID(), bundle)
}

// writeSVID replaces the three files in dir, each by rename, the key readable by its owner alone.
func writeSVID(dir string, s *x509svid.SVID, bundle *x509bundle.Bundle) error {
	certs, key, err := s.Marshal()
	if err != nil {
		return err
	}
	roots, err := bundle.Marshal()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{"key.pem", key, 0o600}, {"svid.pem", certs, 0o644}, {"bundle.pem", roots, 0o644}} {
		tmp, err := os.CreateTemp(dir, "."+f.name+"-*")
		if err != nil {
			return err
		}
		_, err = tmp.Write(f.data)
		err = errors.Join(err, tmp.Chmod(f.mode), tmp.Close())
		if err == nil {
			err = os.Rename(tmp.Name(), filepath.Join(dir, f.name))
		}
		if err != nil {
			_ = os.Remove(tmp.Name())
			return err
		}
	}
	return nil
}

type svidBundleCommand struct{ socketFlag }

func (cmd svidBundleCommand) Run(c *console) error {
	ctx, cancel := context.WithTimeout(c.ctx, cmd.Wait)
	defer cancel()
	set, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr(cmd.address()))
	if err != nil {
		return cmd.explain(err)
	}
	for _, b := range set.Bundles() {
		if _, err := fmt.Fprintf(c.out, "# %s\n", b.TrustDomain().IDString()); err != nil {
			return err
		}
		for _, cert := range b.X509Authorities() {
			if err := pem.Encode(c.out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
				return err
			}
		}
	}
	return nil
}
