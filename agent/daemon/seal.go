package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/seal"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// What lies on the disk sealed: the CA's keys, where config says so, and always the SVIDs that are kept for a start without
// the authority. The two have key-encryption keys of their own, each beside what it opens, so that the loss of the
// authority's folder leaves the SVIDs that are to bridge it.

// kekFile is the key-encryption key in a folder, sealed by the TPM.
const kekFile = "kek.tpm"

// sealing reports whether keys at rest are to be sealed.
func (d *Daemon) sealing() bool { return d.config().Authority.Keys.Seal != config.SealNone }

// openBox is the box that config says, for what is kept in dir; nil where it says none.
func openBox(ctx context.Context, c config.Authority, dir string) (*seal.Box, error) {
	var box *seal.Box
	var err error
	mend := ""
	switch k := c.Keys; k.Seal {
	case config.SealTPM:
		box, err = seal.OpenTPM(ctx, seal.TPMOptions{Device: k.TPM, Path: filepath.Join(dir, kekFile)})
		mend = "give Ward access to the TPM (authority.keys.tpm is " + k.TPM + "), or have another one seal: authority.keys.seal"
	case config.SealCredential:
		box, err = seal.OpenCredential("", k.Credential)
		mend = "see authority.keys.credential, and systemd.exec(5) on LoadCredentialEncrypted="
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("authority.keys: keys are to be sealed (%s), and cannot be: %w; %s", c.Keys.Seal, err, mend)
	}
	return box, nil
}

// buildKeep opens the SVIDs that were kept, and gives the bundle that they verify with; nil where there is none. An agent
// that cannot keep SVIDs starts all the same, since they serve only when its authority is away, and says so.
func (d *Daemon) buildKeep(ctx context.Context) (*x509bundle.Bundle, error) {
	cfg := d.config()
	s := &shelf{log: d.log.Named("kept")}
	d.kept = s
	box, err := openBox(ctx, cfg.Authority, cfg.Agent.State)
	if err == nil && box == nil {
		box, err = seal.OpenFile(filepath.Join(cfg.Agent.State, "kek"))
	}
	var kept *seal.Kept
	if err == nil {
		s.keep, kept, err = seal.ResumeKeep(seal.KeepOptions{Dir: filepath.Join(cfg.Agent.State, "svids"), Box: box, TrustDomain: cfg.TrustDomain})
	}
	switch {
	case errors.Is(err, seal.ErrUnsafe):
		return nil, fmt.Errorf("agent.state: %w", err)
	case err != nil:
		s.fail(fmt.Errorf("agent.state: %w", err))
		return nil, nil
	}
	d.tellDropped(kept.Dropped)
	return kept.Bundle, nil
}

// tellDropped reports kept SVIDs that are not believed. That some have grown old is no news.
func (d *Daemon) tellDropped(dropped []seal.Dropped) {
	reasons := map[string]int{}
	for _, f := range dropped {
		if errors.Is(f.Err, seal.ErrExpired) {
			continue
		}
		d.log.Named("kept").Warn("a kept SVID is not believed", zap.String("file", f.File), zap.Error(f.Err))
		reasons[f.Err.Error()]++
	}
	if len(reasons) == 0 {
		return
	}
	var text []string
	for why, n := range reasons {
		text = append(text, fmt.Sprintf("%d: %s", n, why))
	}
	slices.Sort(text)
	const most = 4 // that of thousands of files each lacks something else is nothing for one record
	if len(text) > most {
		text = append(text[:most], "and more, in the log")
	}
	d.event(&proxy.Record{Event: "kept svids dropped", Effect: proxy.EffectError, Detail: strings.Join(text, "; ")})
}

// shelf keeps SVIDs for a start without the authority. It implements workload.Kept. It reads one when it is asked for: they
// are on the disk for the day on which they are needed, and the agent of thousands of workloads starts no later for them.
type shelf struct {
	keep    *seal.Keep // nil where nothing can be kept
	log     *zap.Logger
	problem atomic.Pointer[string]
}

func slotOf(e *workload.Entry, lent bool) seal.Slot {
	return seal.Slot{Entry: e.Name, ID: e.ID, DNSNames: e.DNSNames, TTL: e.X509TTL, Lent: lent}
}

// Find implements workload.Kept.
func (s *shelf) Find(e *workload.Entry, lent bool) *x509svid.SVID {
	if s.keep == nil {
		return nil
	}
	found, err := s.keep.Find(slotOf(e, lent))
	if err != nil || found == nil {
		if err != nil && !errors.Is(err, seal.ErrExpired) {
			s.log.Warn("a kept SVID is not believed", zap.String("entry", e.Name), zap.Bool("lent", lent), zap.Error(err))
		}
		return nil
	}
	return &x509svid.SVID{ID: found.ID, Certificates: found.Certificates, PrivateKey: found.PrivateKey}
}

// Save implements workload.Kept.
func (s *shelf) Save(svid *workload.SVID, lent bool) {
	if s.keep != nil {
		s.note(s.keep.Save(seal.SVID{Slot: slotOf(svid.Entry, lent), Certificates: svid.Certificates, PrivateKey: svid.PrivateKey}))
	}
}

// sweepKept removes what has grown old since the last start. It is not waited for: there may be thousands.
func (d *Daemon) sweepKept(ctx context.Context, s *shelf) {
	if s.keep == nil {
		return
	}
	dropped, err := s.keep.Sweep(ctx)
	s.note(err)
	d.tellDropped(dropped)
}

// resave is how long a bundle that could not be written waits for the next attempt.
const resave = 30 * time.Second

// follow keeps each bundle of the authority, since SVIDs are believed by it at the next start, until ctx ends.
func (s *shelf) follow(ctx context.Context, e *embedded) error {
	if s.keep == nil {
		return nil
	}
	for {
		bundle, changed := e.X509Bundle()
		var again <-chan time.Time
		if e.authority() != nil { // else it is the kept one
			err := s.keep.SaveBundle(bundle)
			s.note(err)
			if err != nil {
				again = time.After(resave)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// note remembers whether keeping works.
func (s *shelf) note(err error) {
	if err == nil {
		s.problem.Store(nil)
		return
	}
	s.fail(err)
}

func (s *shelf) fail(err error) {
	text := fmt.Sprintf("SVIDs are not kept, so a start without the authority would have none: %v", err)
	if old := s.problem.Swap(&text); old == nil || *old != text {
		s.log.Error("SVIDs cannot be kept for a start without the authority", zap.Error(err))
	}
}
