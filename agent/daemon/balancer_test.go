package daemon_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/proxy"
)

// balance gives where HAProxy is to listen, in front of to and with options after send-proxy-v2. It begins with run; whoever
// connects before that waits.
func balance(t *testing.T, to, options string) (address string, run func()) {
	t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		program = "/usr/sbin/haproxy" // where an ordinary user does not look
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip("SKIPPED: needs haproxy")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(`global
  maxconn 100
defaults
  mode tcp
  timeout connect 20s
  timeout client 60s
  timeout server 60s
listen ehr
  bind fd@3
  unique-id-format %%[uuid()]
  server ward %s send-proxy-v2 %s
`, to, options)), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command(program, "-db", "-f", file)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{f}, &said, &said
	return l.Addr().String(), func() {
		t.Helper()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if t.Failed() {
				t.Log(said.String())
			}
		})
	}
}

// from sends what is no TLS to an address from another one of this host's, waits until it is cut off, and gives whence.
func from(t *testing.T, source, to, what string) string {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	c, err := d.DialContext(context.Background(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, what)
	if n, err := io.Copy(io.Discard, c); n > 100 || os.IsTimeout(err) {
		t.Errorf("%d bytes, %v", n, err)
	}
	return c.LocalAddr().String()
}

// Calls go through a balancer that hands their connections on; who is refused there is known by the address that the
// balancer has told.
func TestServiceBehindABalancer(t *testing.T) {
	for name, options := range map[string]string{
		"plain":                      "",
		"with a checksum and fields": "proxy-v2-options crc32c,unique-id,ssl,cert-cn",
		"with checks of its own":     "proxy-v2-options crc32c check inter 10ms",
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t)
			front, run := balance(t, c.ports[0], options)
			c.edit("addresses: ['"+c.ports[0]+"']", "proxy_protocol: [127.0.0.1], addresses: ['"+front+"']")
			r := c.start(config.RoleRun)
			run()
			app := c.app(ehr)
			app.expect(200)
			// Through the balancer, past it, and past it in its name.
			whence := map[string]proxy.Cause{
				from(t, "127.0.0.3", front, "GET / HTTP/1.1\r\n\r\n"):      proxy.CauseNoIdentity,
				from(t, "127.0.0.2", c.ports[0], "GET / HTTP/1.1\r\n\r\n"): proxy.CauseNoIdentity,
				from(t, "127.0.0.1", c.ports[0], "GET / HTTP/1.1\r\n\r\n"): proxy.CauseMalformed,
			}
			for remote := range whence {
				r.await("a refusal of "+remote, func(rec *proxy.Record) bool { return rec.Stage == proxy.StageRefusal && rec.Remote == remote })
			}
			app.expect(200)
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, rec := range r.records { // and of nobody else: that a balancer looks whether somebody listens is no refusal
				if rec.Stage == proxy.StageRefusal && rec.Cause != whence[rec.Remote] {
					t.Errorf("%s of %s: %s", rec.Cause, rec.Remote, rec.Detail)
				}
			}
		})
	}
}

// One caller's connections are bounded as config says, from the next one on.
func TestCallersConnectionsAreBounded(t *testing.T) {
	each(t, func(t *testing.T, c *clinic, all []*running) {
		c.edit("listen: '"+c.ports[0]+"'", "max_connections: 1, listen: '"+c.ports[0]+"'")
		reloadAll(all)
		resp, err := c.app(ehr).open(ehr, "Patient/slow")
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		defer resp.Body.Close()
		c.app(ehr).expect(502)
		rec := ingressOf(all).await("one connection too many", func(rec *proxy.Record) bool { return rec.Cause == proxy.CauseLimit })
		if rec.Hop != proxy.HopIngress || rec.Caller != "spiffe://clinic.test/app/test" || !strings.Contains(rec.Detail, "max_connections is 1") {
			t.Errorf("%+v", rec)
		}
		c.upstream.finish <- struct{}{}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		c.app(ehr).expect(200) // on the connection that is there
	})
}
