package daemon

import (
	"context"
	"fmt"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/systemd"
	"github.com/wardmesh/ward/attest/unix"
)

// hostAttestors are the attestors of every host, the cheap ones first.
func hostAttestors(units *systemd.Attestor, hashes func() bool) ([]attest.Attestor, error) {
	files := executables{hashes: hashes}
	for _, a := range []struct {
		into **exe.Attestor
		o    exe.Options
	}{{&files.named, exe.Options{}}, {&files.read, exe.Options{SHA256: true}}} {
		var err error
		if *a.into, err = exe.New(a.o); err != nil {
			return nil, fmt.Errorf("attestor exe: %w", err)
		}
	}
	return []attest.Attestor{unix.Attestor{}, units, files}, nil
}

// executables hashes executables only while an entry asks for a hash: the first look at a large one costs tens of
// milliseconds.
type executables struct {
	named, read *exe.Attestor
	hashes      func() bool
}

// Name implements attest.Attestor.
func (e executables) Name() string { return e.named.Name() }

// Attest implements attest.Attestor.
func (e executables) Attest(ctx context.Context, p attest.Process) ([]attest.Selector, error) {
	if e.hashes() {
		return e.read.Attest(ctx, p)
	}
	return e.named.Attest(ctx, p)
}
