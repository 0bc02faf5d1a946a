package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
)

// peer is another proxy that can be both hops. Each is given what its own manual recommends for keep-alive and TLS 1.3
// alone, as many workers as there are processors where it does not decide by itself, and no access log. Each verifies
// its peer's chain; ghostunnel and Caddy check names as well.
type peer struct {
	name     string
	programs []string // any of them
	l4       bool     // it forwards bytes: a call is not looked at
	// hop gives the command line of one hop, and its configuration, for which %s in the command line stands.
	hop func(b *bench, h hop) (argv []string, config string)
}

// hop is what one process of a peer is to do.
type hop struct {
	server   bool // the hop before the FHIR server
	listen   string
	target   string // of the client hop: the server hop's address
	dir      string // its own folder
	workers  int
	program  string
	upstream string // of the server hop: the FHIR server's Unix socket
}

func peers() []peer {
	return []peer{{name: "nginx", programs: []string{"nginx"}, hop: nginx}, {name: "haproxy", programs: []string{"haproxy"}, hop: haproxy},
		{name: "caddy", programs: []string{"caddy"}, hop: caddy}, {name: "ghostunnel", programs: []string{"ghostunnel"}, l4: true, hop: ghostunnel},
		{name: "stunnel", programs: []string{"stunnel", "stunnel4"}, l4: true, hop: stunnel}}
}

func peerNames() (names []string) {
	for _, p := range peers() {
		names = append(names, p.name)
	}
	return names
}

func peerNamed(name string) (peer, error) {
	for _, p := range peers() {
		if p.name == name {
			return p, nil
		}
	}
	return peer{}, fmt.Errorf("nobody knows %s", name)
}

// program finds the peer on this machine.
func (p peer) program() (string, error) {
	for _, name := range p.programs {
		for _, dir := range append(strings.Split(os.Getenv("PATH"), ":"), "/usr/sbin", "/usr/local/sbin") {
			if path, err := exec.LookPath(dir + "/" + name); err == nil {
				return path, nil
			}
		}
	}
	return "", errors.New("it is not installed")
}

// startPeer starts both hops of a peer.
func (b *bench) startPeer(name string, number int) (_ *chain, err error) {
	p, err := peerNamed(name)
	if err != nil {
		return nil, err
	}
	program, err := p.program()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	c := &chain{name: name, front: ports[0], back: ports[1], credentials: b.credentials}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	for _, h := range []hop{{server: true, listen: c.back, upstream: b.originSocket()}, {listen: c.front, target: c.back}} {
		role, into := "client", &c.client
		if h.server {
			role, into = "server", &c.server
		}
		h.program, h.workers = program, b.processors
		h.dir = b.at("peers", fmt.Sprintf("%s-%d-%s", name, number, role))
		if err := errors.Join(os.MkdirAll(h.dir, 0o755), os.Chown(h.dir, uidPeer, uidPeer)); err != nil {
			return nil, err
		}
		if role == "client" && b.o.front == "unix" {
			h.listen = h.dir + "/in.sock"
			c.front = "unix:" + h.listen
		}
		argv, config := p.hop(b, h)
		if err := os.WriteFile(h.dir+"/config", []byte(config), 0o644); err != nil { //nolint:gosec // nothing secret
			return nil, err
		}
		if *into, err = b.start(command{name: fmt.Sprintf("%s-%d-%s", name, number, role), uid: uidPeer, argv: argv, env: []string{"XDG_DATA_HOME=" + h.dir, "XDG_CONFIG_HOME=" + h.dir}}); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func nginx(b *bench, h hop) ([]string, string) {
	var server, upstream string
	if h.server {
		server = fmt.Sprintf(`listen %s ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate %[2]s/server.crt; ssl_certificate_key %[2]s/server.key;
    ssl_client_certificate %[2]s/ca.pem; ssl_verify_client on; location / { proxy_pass http://upstream; }`, h.listen, b.at("tls"))
		upstream = "unix:" + h.upstream
	} else {
		server = fmt.Sprintf(`listen %[1]s backlog=4096; location / { proxy_pass https://upstream; proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate %[2]s/client.crt; proxy_ssl_certificate_key %[2]s/client.key;
    proxy_ssl_trusted_certificate %[2]s/ca.pem; proxy_ssl_verify on; proxy_ssl_name %[3]s; proxy_ssl_server_name on; }`, unixAs("unix:", h.listen), b.at("tls"), serverName)
		upstream = h.target
	}
	return []string{h.program, "-e", "stderr", "-c", h.dir + "/config", "-p", h.dir}, fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr crit; worker_processes %[2]d;
events { worker_connections 16384; }
http {
  access_log off; keepalive_requests 1000000; keepalive_timeout 600s; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_max_temp_file_size 0;
  upstream upstream { server %[3]s; keepalive 128; keepalive_requests 1000000; }
  server { %[4]s }
}
`, h.dir, h.workers, upstream, server)
}

func haproxy(b *bench, h hop) ([]string, string) {
	bind, server := "bind "+h.listen, ""
	if strings.HasPrefix(h.listen, "/") {
		bind = "bind unix@" + h.listen + " mode 666"
	}
	if h.server {
		bind += fmt.Sprintf(" ssl crt %[1]s/server.pem ca-file %[1]s/ca.pem verify required ssl-min-ver TLSv1.3 alpn http/1.1", b.at("tls"))
		server = "server s unix@" + h.upstream
	} else {
		server = fmt.Sprintf("server s %s ssl crt %[2]s/client.pem ca-file %[2]s/ca.pem verify required ssl-min-ver TLSv1.3 sni str(%[3]s) verifyhost %[3]s alpn http/1.1", h.target, b.at("tls"), serverName)
	}
	return []string{h.program, "-db", "-f", h.dir + "/config"}, fmt.Sprintf(`global
  nbthread %d
  maxconn %d
defaults
  mode http
  timeout connect 10s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend in
  %s
  default_backend out
backend out
  %s
`, h.workers, b.files/2-200, bind, server)
}

func caddy(b *bench, h hop) ([]string, string) {
	var site string
	if h.server {
		site = fmt.Sprintf(`https://:%[1]s {
  bind 127.0.0.1
  tls %[2]s/server.crt %[2]s/server.key {
    protocols tls1.3
    client_auth {
      mode require_and_verify
      trust_pool file %[2]s/ca.pem
    }
  }
  reverse_proxy unix/%[3]s
}`, port(h.listen), b.at("tls"), h.upstream)
	} else {
		at, bind := ":"+port(h.listen), "127.0.0.1"
		if strings.HasPrefix(h.listen, "/") {
			at, bind = "", "unix/"+h.listen+"|0666"
		}
		site = fmt.Sprintf(`http://%[1]s {
  bind %[5]s
  reverse_proxy https://%[2]s {
    transport http {
      versions 1.1
      tls_client_auth %[3]s/client.crt %[3]s/client.key
      tls_trust_pool file %[3]s/ca.pem
      tls_server_name %[4]s
      keepalive_idle_conns_per_host 128
    }
  }
}`, at, h.target, b.at("tls"), serverName, bind)
	}
	return []string{h.program, "run", "--adapter", "caddyfile", "--config", h.dir + "/config"}, "{\n  admin off\n  auto_https off\n  servers {\n    protocols h1\n    strict_sni_host insecure_off\n  }\n  log {\n    level ERROR\n  }\n}\n" + site + "\n"
}

func ghostunnel(b *bench, h hop) ([]string, string) {
	argv := []string{h.program}
	tls := func(name string) []string {
		return []string{"--cert", b.at("tls", name+".crt"), "--key", b.at("tls", name+".key"), "--cacert", b.at("tls", "ca.pem"), "--listen", unixAs("unix:", h.listen), "--quiet", "all"}
	}
	if h.server {
		argv = append(append(argv, "server"), tls("server")...)
		return append(argv, "--target", "unix:"+h.upstream, "--allow-uri", "spiffe://"+domain+"/bench/client"), ""
	}
	argv = append(append(argv, "client"), tls("client")...)
	return append(argv, "--target", h.target, "--override-server-name", serverName, "--verify-uri", "spiffe://"+domain+"/bench/server"), ""
}

func stunnel(b *bench, h hop) ([]string, string) {
	const common = "foreground = yes\ndebug = 3\npid =\n[bench]\nsslVersion = TLSv1.3\nCAfile = %[1]s/ca.pem\nverifyChain = yes\naccept = %[2]s\n"
	if h.server {
		return []string{h.program, h.dir + "/config"}, fmt.Sprintf(common+"cert = %[1]s/server.crt\nkey = %[1]s/server.key\nconnect = %[3]s\n", b.at("tls"), h.listen, h.upstream)
	}
	return []string{h.program, h.dir + "/config"}, fmt.Sprintf(common+"client = yes\ncheckHost = %[4]s\ncert = %[1]s/client.crt\nkey = %[1]s/client.key\nconnect = %[3]s\n", b.at("tls"), h.listen, h.target, serverName)
}

// unixAs writes an address, and a Unix socket's path with what a program wants before it.
func unixAs(prefix, address string) string {
	if strings.HasPrefix(address, "/") {
		return prefix + address
	}
	return address
}

// port is the port of an address.
func port(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return port
}
