package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/attest/launch"
	"github.com/wardmesh/ward/examples/clinic"
)

// prepare makes the folder with config and policies, and opens the sockets that need a port.
func prepare(o Options) (*stage, error) {
	s := &stage{o: o, root: os.Getuid() == 0, listeners: map[string]net.Listener{}, workloads: map[string]*process{}}
	if err := s.prepare(); err != nil {
		s.clean()
		return nil, err
	}
	return s, nil
}

func (s *stage) prepare() (err error) {
	if s.o.Dir, err = filepath.Abs(s.o.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return err
	}
	// Before anything is written: in a folder of somebody else's, the files may be links to any other file.
	if err := config.GuardDir(s.o.Dir, config.Options{}); err != nil {
		var unsafe *config.UnsafeError
		if errors.As(err, &unsafe) {
			return fmt.Errorf("%w; %s, or choose another folder with --dir", err, unsafe.Mend())
		}
		return err
	}
	s.supervisor = new(launch.Supervisor)
	if err := s.claim(); err != nil {
		return err
	}
	if s.binary, err = os.Executable(); err != nil {
		return err
	}
	s.run = filepath.Join(s.o.Dir, "run")
	if s.root {
		if err := s.shareBinary(); err != nil {
			return err
		}
	} else if err := os.MkdirAll(s.run, 0o700); err != nil {
		return err
	}
	if len(s.fhirSocket()) > 100 { // sun_path holds 108 bytes
		return fmt.Errorf("%s is too long for sockets; choose another with --dir", s.o.Dir)
	}
	for _, p := range []*string{&s.egress, &s.ingress} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		*p = l.Addr().String()
		s.listeners[*p] = l
	}
	if s.provide, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	s.issuer = "http://" + s.provide.Addr().String()
	if s.log, err = logger(filepath.Join(s.o.Dir, "ward.log")); err != nil {
		return err
	}
	if err := writePolicies(filepath.Join(s.o.Dir, "policy")); err != nil {
		return err
	}
	_ = os.Remove(s.fhirSocket())
	s.configFile = filepath.Join(s.o.Dir, "ward.yaml")
	return os.WriteFile(s.configFile, []byte(s.config()), 0o600)
}

// claim keeps a second demonstration out of the folder: it would write its own ports into the first one's config.
func (s *stage) claim() (err error) {
	if s.lock, err = os.OpenFile(filepath.Join(s.o.Dir, "up.lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { //nolint:gosec // a file descriptor fits
		return fmt.Errorf("another ward up runs in %s; end it, or use another folder with --dir", s.o.Dir)
	}
	return nil
}

func (s *stage) fhirSocket() string { return filepath.Join(s.run, "fhir.sock") }

// shareBinary makes a folder that the workloads' users can reach, with this binary in it: the one that runs may lie
// in a place that is root's alone (go run's is).
func (s *stage) shareBinary() (err error) {
	if s.run, err = os.MkdirTemp("/run", "ward-up-"); err != nil {
		if s.run, err = os.MkdirTemp("", "ward-up-"); err != nil {
			return err
		}
	}
	s.temporary = true
	if err := os.Chmod(s.run, 0o711); err != nil { //nolint:gosec // to be reached, not to be listed
		return err
	}
	from, err := os.Open(s.binary)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	s.binary = filepath.Join(s.run, "ward")
	to, err := os.OpenFile(s.binary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755) //nolint:gosec // to be executed
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// logger writes the daemon's log to a file: the screen belongs to the calls.
func logger(path string) (*zap.Logger, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(f), zap.InfoLevel)), nil
}

// writePolicies puts the clinic's policies where they can be edited; what is there already stays as it is.
func writePolicies(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	set, err := clinic.Policy()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return fs.WalkDir(set, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := fs.ReadFile(set, name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), b, 0o600)
	})
}

// config is the config of this run. Its ports are new every time.
func (s *stage) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Written by ward up, anew at each start. Policies in ./policy are kept.
trust_domain: %s
authority: {dir: %s}
agent: {socket: %s}
admin: {socket: %s, egress: %s, ingress: %s, mesh: %s}
`, trustDomain, quote(filepath.Join(s.o.Dir, "authority")), quote(filepath.Join(s.run, "workload.sock")), quote(filepath.Join(s.run, "admin.sock")),
		// There are no such roles here, and those of an installed Ward are none of this one's business.
		quote(filepath.Join(s.run, "egress.sock")), quote(filepath.Join(s.run, "ingress.sock")), quote(filepath.Join(s.run, "mesh.sock")))
	if !s.root {
		b.WriteString("# These users are for ward up as root. Without root the workloads are told apart by how they were launched.\n")
	}
	b.WriteString("workloads:\n")
	var callers []string
	for i, p := range cast() {
		if p.id == "" {
			continue
		}
		callers = append(callers, p.id)
		fmt.Fprintf(&b, "  - {id: %s, select: {unix.uid: %d}, proxy: true", p.id, firstUID+i)
		if p.ttl > 0 {
			fmt.Fprintf(&b, ", svid: {x509_ttl: %s}", p.ttl)
		}
		b.WriteString("}\n")
	}
	fmt.Fprintf(&b, `services:
  - name: %s
    id: %s
    addresses: [%s]
    callers: [%s]
    max_exchange: %s
    listen: %s
    upstream: {address: %s}
tokens:
  - {issuer: %q, audience: [%q], algorithms: [ES256]}
bindings:
`, serviceName, wardID, quote(s.ingress), strings.Join(callers, ", "), maxExchange, quote(s.ingress), quote("unix:"+s.fhirSocket()), s.issuer, audience)
	for _, p := range cast() {
		if p.client != "" {
			fmt.Fprintf(&b, "  - {client_id: %s, workloads: [%s]}\n", p.client, p.id)
		}
	}
	fmt.Fprintf(&b, "policies: {dir: %s}\naudit: {dir: %s}\nmesh: {dns: '', listen: %s, sockets: %s}\nlog: {level: info}\n",
		quote(filepath.Join(s.o.Dir, "policy")), quote(filepath.Join(s.o.Dir, "audit")), quote(s.egress), quote(filepath.Join(s.run, "egress")))
	return b.String()
}

// quote makes s a YAML string.
func quote(s string) string {
	b, _ := json.Marshal(s) // a string always can be
	return string(b)
}

// process is a running workload.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	end func() error
}

// startWorkloads starts every player in a process of its own.
func (s *stage) startWorkloads(ctx context.Context) error {
	for i, p := range cast() {
		cmd := exec.CommandContext(ctx, s.binary, "workload") //nolint:gosec // our own binary
		cmd.Env = []string{"HOME=/", "PATH=/usr/bin:/bin"}
		cmd.Dir = "/"
		cmd.Stderr = s.o.Err
		if s.root {
			uid := uint32(firstUID + i) //nolint:gosec // a handful
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		proc := &process{cmd: cmd, in: in, out: json.NewDecoder(out)}
		if p.id != "" && !s.root {
			child, err := s.supervisor.Start(p.name, cmd)
			if err != nil {
				return err
			}
			proc.end = child.Wait
		} else {
			if err := cmd.Start(); err != nil {
				return err
			}
			proc.end = cmd.Wait
		}
		s.workloads[p.name] = proc
		err = json.NewEncoder(in).Encode(part{Workload: "unix://" + filepath.Join(s.run, "workload.sock"), Egress: s.egress,
			Socket: filepath.Join(s.run, "egress", serviceName+".sock"), Issuer: s.issuer, Client: p.client, Secret: p.name})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// do gives a workload an order and waits for the answer.
func (p *process) do(ctx context.Context, o order) (answer, error) {
	var a answer
	done := make(chan error, 1)
	go func() {
		if err := json.NewEncoder(p.in).Encode(o); err != nil {
			done <- err
			return
		}
		done <- p.out.Decode(&a)
	}()
	select {
	case err := <-done:
		if err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
		return a, err
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// stopWorkloads ends the workloads' processes and waits for them.
func (s *stage) stopWorkloads() {
	for name, p := range s.workloads {
		_ = p.in.Close()
		timer := time.AfterFunc(2*time.Second, func() { _ = p.cmd.Process.Kill() })
		_ = p.end()
		timer.Stop()
		delete(s.workloads, name)
	}
}

// clean ends what prepare and serve began.
func (s *stage) clean() {
	for _, server := range s.servers {
		_ = server.Close()
	}
	for _, l := range s.listeners {
		_ = l.Close()
	}
	if s.provide != nil {
		_ = s.provide.Close()
	}
	if s.log != nil {
		_ = s.log.Sync()
	}
	if s.temporary {
		_ = os.RemoveAll(s.run)
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}
