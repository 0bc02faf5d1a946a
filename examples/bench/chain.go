package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
)

// chain is two proxies in a row that run: the client hop takes plain calls and speaks mutual TLS to the server hop, which
// speaks plainly to the FHIR server.
type chain struct {
	name        string
	front, back string // addresses of the client hop and the server hop
	listen      string // Ward's loopback listener, which is there by whatever way applications come
	client      *process
	server      *process
	agent       *process // Ward's, which is no hop, and whose work counts all the same
	credentials *credentials
}

// processes are all those whose work counts.
func (c *chain) processes() []*process {
	if c.client == nil { // none: the FHIR server by itself
		return nil
	}
	if c.agent != nil {
		return []*process{c.client, c.server, c.agent}
	}
	return []*process{c.client, c.server}
}

func (c *chain) stop() {
	if c == nil {
		return
	}
	for _, p := range []*process{c.client, c.server, c.agent} {
		p.stop()
	}
}

// serves waits until a caller gets an answer through the chain.
func (b *bench) serves(ctx context.Context, c *chain) error {
	return until(ctx, func() error {
		if path, ok := strings.CutPrefix(c.front, "unix:"); ok {
			_ = os.Chmod(path, 0o666) // as soon as it is there; what is wrong with it, the call will tell
		}
		t, _, err := b.under(ctx, errand{Do: "keepalive", Address: c.front, Request: request("/Patient/example", b.staff), Conns: 1, For: 1})
		if err == nil && t.Bytes != t.Calls*patientBytes {
			err = fmt.Errorf("%d replies of %d bytes have %d in all", t.Calls, patientBytes, t.Bytes)
		}
		return err
	}, c.processes()...)
}

// freePorts finds ports of 127.0.0.1 at which nobody listens.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }() // all at the end, so that no two are the same
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// begin starts a chain by its name.
func (b *bench) begin(ctx context.Context, name string) (*chain, error) {
	if kind, _, _ := strings.Cut(name, "@"); kind == "ward" {
		trail, err := b.trail(name)
		if err != nil {
			return nil, err
		}
		c, err := b.startWard(ctx, fmt.Sprintf("ward-%d", b.count()), trail)
		return b.served(ctx, c, err)
	}
	c, err := b.startPeer(name, b.count())
	return b.served(ctx, c, err)
}

// served gives a chain that has started once it serves, and else stops it.
func (b *bench) served(ctx context.Context, c *chain, err error) (*chain, error) {
	if err == nil {
		err = b.serves(ctx, c)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}
