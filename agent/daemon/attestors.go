package daemon

import (
	"fmt"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/exe"
	"github.com/wardmesh/ward/attest/systemd"
	"github.com/wardmesh/ward/attest/unix"
)

// hostAttestors are the attestors of every host, the cheap ones first. The executable is hashed only where an entry
// asks for a hash: the first look at a large one costs tens of milliseconds.
func hostAttestors(units *systemd.Attestor, hashes bool) ([]attest.Attestor, error) {
	files, err := exe.New(exe.Options{SHA256: hashes})
	if err != nil {
		return nil, fmt.Errorf("attestor exe: %w", err)
	}
	return []attest.Attestor{unix.Attestor{}, units, files}, nil
}
