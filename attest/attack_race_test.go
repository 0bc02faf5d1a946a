package attest_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/peer"
)

// The process exits at any moment of its attestation.
func TestAttackExitDuringAttestation(t *testing.T) {
	for name, without := range fallbacks() {
		t.Run(name, func(t *testing.T) {
			pinner := newPinner(t, peer.Options{Without: without})
			l := listenUnix(t)
			path := program(t)
			for at := range len(allAttestors(t)) + 1 {
				attacker := start(t, path)
				attacker.do("unix " + l.Addr().String())
				p, err := pinner.Unix(accept[*net.UnixConn](t, l))
				if err != nil {
					t.Fatal(err)
				}
				all := allAttestors(t)
				attestors := append(append(append([]attest.Attestor{}, all[:at]...), between(attacker.kill)), all[at:]...)
				_, err = attest.Run(t.Context(), p, attestors)
				wantError(t, err, attest.ErrExited)
			}
		})
	}
}

// The same, left to chance.
func TestAttackExitRace(t *testing.T) {
	pinner := newPinner(t, peer.Options{})
	unixListener, tcpListener := listenUnix(t), listenTCP(t, "127.0.0.1:0")
	path := program(t)
	attestors := allAttestors(t)
	want := attest.Selector{Type: attest.ExePath, Value: path}
	for i := range 60 {
		attacker := start(t, path)
		var pin func() (*peer.Process, error)
		if i%2 == 0 {
			attacker.do("unix " + unixListener.Addr().String())
			conn := accept[*net.UnixConn](t, unixListener)
			pin = func() (*peer.Process, error) { return pinner.Unix(conn) }
		} else {
			attacker.do("tcp " + tcpListener.Addr().String())
			conn := accept[*net.TCPConn](t, tcpListener)
			pin = func() (*peer.Process, error) { return pinner.TCP(t.Context(), conn) }
		}
		killed := make(chan struct{})
		go func() { defer close(killed); attacker.kill() }()
		p, err := pin()
		if err == nil {
			var a attest.Attestation
			if a, err = attest.Run(t.Context(), p, attestors); err == nil && !a.Selectors.Contains(attest.Selectors{want}) {
				t.Fatalf("attested as %v", a.Selectors)
			}
			p.Close()
		}
		if err != nil && !errors.Is(err, attest.ErrExited) && !errors.Is(err, peer.ErrNotAttributable) {
			t.Fatal(err)
		}
		<-killed
	}
}

// between is an attestor that lets something happen in the middle of an attestation.
type between func()

func (between) Name() string { return "between" }

func (f between) Attest(context.Context, attest.Process) ([]attest.Selector, error) {
	f()
	return nil, nil
}
