package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

// shut tells when a connection is closed, and whether TLS was given time to take its leave before that.
type shut struct {
	net.Conn
	once  sync.Once
	done  chan struct{}
	leave atomic.Bool
}

func (s *shut) SetWriteDeadline(at time.Time) error {
	select {
	case <-s.done:
	default:
		s.leave.Store(true)
	}
	return s.Conn.SetWriteDeadline(at)
}

func (s *shut) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Conn.Close()
}

// A ward for which no CA vouches any more reads nothing, so that TLS cannot take its leave of it: it must be cut off all
// the same, and at once.
func TestAttackWithdrawnPeerReadsNothing(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe() // of which nothing is buffered: what is not read blocks
	raw := &shut{Conn: near, done: make(chan struct{})}
	server := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	defer func() { _ = raw.Close() }()
	go func() {
		_ = tls.Client(far, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}).Handshake() //nolint:gosec // whom it calls is not the point
	}()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	var open connections
	pooled := &watched{Conn: wire.Bounded(server, time.Now().Add(time.Hour)), raw: raw, of: &open}
	open.add(pooled, func() error { return errors.New("withdrawn") })
	if n := open.recheck(); n != 1 {
		t.Fatalf("%d cut", n)
	}
	<-raw.done
	if raw.leave.Load() {
		t.Error("TLS was given time to take its leave, for which the peer need not read")
	}
}
