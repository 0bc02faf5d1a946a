// Package up is the demonstration: all of Ward on one machine, with a FHIR server, an OpenID Provider and workloads in
// processes of their own that make real calls, good and bad.
//
// Nothing in it is played: the daemon is the one that `ward run` starts, with a config and policies that can be read
// and edited afterwards; the workloads are processes that are attested, know only a mesh name and a Workload API
// socket, and are driven over their standard input. Each call is judged by what its process saw and by what the audit
// trail says of it.
//
// As root every workload gets a user of its own, as in production, and a copy of the binary in a folder that they can
// reach. Without root they share a user, so they are enrolled by the launch selector, which no config file can write.
//
// This package alone may import the examples, and nothing that `ward run` needs may import this package.
package up

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/attest/launch"
	"github.com/wardmesh/ward/examples/demo/fhirserver"
	"github.com/wardmesh/ward/examples/demo/provider"
	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/workload"
)

// Options says how to demonstrate.
type Options struct {
	Dir     string // where config, policies, keys and the trail are kept; made 0700 when missing
	Check   bool   // end when the calls have been made
	JSON    bool   // one object per call
	Version string
	Out     io.Writer // the calls
	Err     io.Writer // everything else
}

// FailedError says that calls did not end as they should.
type FailedError struct{ Failed, Calls int }

func (e *FailedError) Error() string {
	return fmt.Sprintf("%d of %d calls did not end as expected", e.Failed, e.Calls)
}

// checkTime bounds a run with Check.
const checkTime = 60 * time.Second

// Run demonstrates until ctx ends, or until all calls are made when o.Check is set.
func Run(ctx context.Context, o Options) error {
	start := time.Now()
	if o.Check {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, checkTime, fmt.Errorf("the calls took longer than %s", checkTime))
		defer cancel()
	}
	s, err := prepare(o)
	if err != nil {
		return err
	}
	defer s.clean()
	if err := s.serve(); err != nil {
		return err
	}
	cfg, err := config.Load(s.configFile, config.Options{})
	if err != nil {
		return fmt.Errorf("%w\n(remove %s to start the demonstration anew)", err, o.Dir)
	}
	defer s.stopWorkloads()
	records := newRecords()
	ready := make(chan struct{})
	d, err := daemon.New(ctx, cfg, daemon.Options{Version: o.Version, Log: s.log, Listeners: s.listeners, Records: records.add,
		Attestors: []attest.Attestor{s.supervisor}, Entries: s.launchEntries(cfg), Ready: func() { close(ready) },
		Load: func() (*config.Config, error) { return config.Load(s.configFile, config.Options{}) }})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.Run(running) }()
	defer func() {
		s.stopWorkloads()
		stop()
		<-ended
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		return err
	}
	p := &printer{out: o.Out, json: o.JSON}
	p.head(s)
	if err := s.startWorkloads(ctx); err != nil {
		return err
	}
	for _, c := range calls() {
		if ctx.Err() != nil {
			break
		}
		if err := p.call(s.make(ctx, c, records)); err != nil {
			return err
		}
	}
	if cause := context.Cause(ctx); cause != nil && o.Check {
		return cause
	}
	p.foot(s, time.Since(start))
	if !o.Check {
		fmt.Fprintln(o.Err, "up until Ctrl-C")
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- nil
			return err
		}
	}
	if p.failed > 0 {
		return &FailedError{p.failed, p.made}
	}
	return nil
}

// stage is what stands around the calls.
type stage struct {
	o          Options
	root       bool
	configFile string
	run        string // sockets, and as root the binary
	binary     string
	temporary  bool
	lock       *os.File

	log        *zap.Logger
	listeners  map[string]net.Listener
	egress     string
	ingress    string
	issuer     string
	fhir       *fhirserver.Server
	provider   *provider.Provider
	servers    []*http.Server
	provide    net.Listener
	supervisor *launch.Supervisor
	workloads  map[string]*process
}

// serve starts the FHIR server and the OpenID Provider.
func (s *stage) serve() (err error) {
	if s.fhir, err = fhirserver.New(time.Now); err != nil {
		return err
	}
	if s.provider, err = provider.New(s.issuer, audience, users(), clients(), time.Now); err != nil {
		return err
	}
	upstream, err := net.Listen("unix", s.fhirSocket())
	if err != nil {
		return err
	}
	if err := os.Chmod(s.fhirSocket(), 0o600); err != nil { // whoever reaches it goes round Ward
		return err
	}
	for l, h := range map[net.Listener]http.Handler{upstream: s.fhir, s.provide: s.provider} {
		server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
		s.servers = append(s.servers, server)
		go func() { _ = server.Serve(l) }()
	}
	return nil
}

// launchEntries enrols the workloads by how they were started, where they cannot be told apart by user.
func (s *stage) launchEntries(cfg *config.Config) []*workload.Entry {
	if s.root {
		return nil
	}
	var out []*workload.Entry
	for _, w := range cast() {
		if w.id == "" {
			continue
		}
		out = append(out, &workload.Entry{Name: w.id, ID: id(cfg, w.id), Proxy: true, X509TTL: w.ttl, MinStrength: attest.Weak,
			Selectors: attest.NewSelectors(attest.Selector{Type: attest.Launch, Value: w.name})})
	}
	return out
}

// records remembers what the trail says of each call.
type records struct {
	add func(*proxy.Record)
	get func(ctx context.Context, decision string) *proxy.Record
}

func newRecords() *records {
	type question struct {
		decision string
		answer   chan *proxy.Record
	}
	seen, asked := make(chan proxy.Record, 64), make(chan question)
	go func() {
		known := map[string]*proxy.Record{}
		for {
			select {
			case r := <-seen:
				if old := known[r.Decision]; old == nil || r.Stage != proxy.StageOutcome {
					known[r.Decision] = &r
				}
			case q := <-asked:
				q.answer <- known[q.decision]
			}
		}
	}()
	return &records{
		add: func(r *proxy.Record) {
			if r.Decision != "" {
				seen <- *r
			}
		},
		get: func(ctx context.Context, decision string) *proxy.Record {
			q := question{decision, make(chan *proxy.Record, 1)}
			select {
			case asked <- q:
				return <-q.answer
			case <-ctx.Done():
				return nil
			}
		},
	}
}

// printer writes one line per call.
type printer struct {
	out          io.Writer
	json         bool
	made, failed int
	last         string // the decision of the last refusal
}

// line is one call as it is shown. Its JSON is a contract.
type line struct {
	Name     string `json:"name"`
	Workload string `json:"workload"`
	User     string `json:"user"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Status   int    `json:"status"`
	Decision string `json:"decision"` // allow, deny or error
	Reason   string `json:"reason"`
	Expected string `json:"expected"`
	OK       bool   `json:"ok"`

	id string
}

func (p *printer) head(s *stage) {
	if p.json {
		return
	}
	fmt.Fprintf(p.out, "authority  %s, keys in %s\n", trustDomain, s.o.Dir)
	fmt.Fprintf(p.out, "fhir       %d HL7 resources behind http://%s\n", s.fhir.Len(), serviceName)
}

func (p *printer) call(l line) error {
	p.made++
	if !l.OK {
		p.failed++
	}
	if l.Decision != string(proxy.Allow.String()) && l.id != "" {
		p.last = l.id
	}
	if p.json {
		return json.NewEncoder(p.out).Encode(l)
	}
	verdict, note := "ok  ", ""
	if !l.OK {
		verdict, note = "FAIL", "  (expected "+l.Expected+")"
	}
	user := l.User
	if user == "" {
		user = "-"
	}
	_, err := fmt.Fprintf(p.out, "%s %-8s %-9s %-46s %d  %s%s\n", verdict, l.Workload, user, l.Method+" "+l.Path, l.Status, l.Reason, note)
	return err
}

func (p *printer) foot(s *stage, took time.Duration) {
	if p.json {
		return
	}
	fmt.Fprintf(p.out, "%d of %d calls ended as expected in %.1fs\n", p.made-p.failed, p.made, took.Seconds())
	next := ""
	if p.last != "" {
		next = " · ward policy explain " + p.last
	}
	fmt.Fprintf(p.out, "next: ward audit tail%s · edit %s/policy/\n", next, s.o.Dir)
}
