package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/doctor"
	"github.com/wardmesh/ward/agent/up"
	"github.com/wardmesh/ward/proxy/policy"
)

// A second shows at most logBurst lines of one message, and after that every logBurst-th: any local process can have
// itself refused as often as it likes, and must not fill the disk by it. Metrics and the trail count them all.
const logBurst = 100

// newLog is the daemon's own log, on stderr.
func newLog(cfg config.Log, w io.Writer) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(cfg.Level)
	if err != nil {
		return nil, err
	}
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(enc)
	if cfg.Format == "console" {
		encoder = zapcore.NewConsoleEncoder(enc)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)
	return zap.New(zapcore.NewSamplerWithOptions(core, time.Second, logBurst, logBurst)), nil
}

// listErrors prints errors that have places as `file:line:column: what; advice`, with the excerpt on a terminal.
func listErrors(w io.Writer, err error) error {
	if err == nil {
		return nil
	}
	var inConfig config.Errors
	var inPolicies policy.Problems
	switch {
	case errors.As(err, &inConfig):
		_, color := os.LookupEnv("NO_COLOR")
		if rerr := inConfig.Render(w, config.Style{Excerpt: isTerminal(w), Color: isTerminal(w) && !color}); rerr != nil {
			return rerr
		}
		countErrors(w, len(inConfig))
	case errors.As(err, &inPolicies):
		fmt.Fprintln(w, inPolicies.Error())
		countErrors(w, len(inPolicies))
	default:
		return err
	}
	return errSilent
}

func countErrors(w io.Writer, n int) {
	if n == 1 {
		fmt.Fprintln(w, "1 error; nothing was started or changed")
		return
	}
	fmt.Fprintf(w, "%d errors; nothing was started or changed\n", n)
}

type checkCommand struct {
	configFlag
	Explain string `placeholder:"CODE" help:"Explain an error code, such as W0213, and do nothing else."`
}

// Run checks the config and the policies that it names, and touches nothing that runs.
func (cmd checkCommand) Run(c *console) error {
	if cmd.Explain != "" {
		page, ok := config.Explain(cmd.Explain)
		if !ok {
			page, ok = doctor.Explain(cmd.Explain)
		}
		if !ok {
			return fmt.Errorf("no error has the code %q; codes look like W0213", cmd.Explain)
		}
		_, err := io.WriteString(c.out, page+"\n")
		return err
	}
	cfg, err := cmd.load()
	if err != nil {
		return listErrors(c.err, err)
	}
	policies := 0
	if serves(cfg) {
		set, err := policy.Load(cfg.Policies.Dir)
		if err != nil {
			return listErrors(c.err, err)
		}
		policies = set.Len()
	}
	_, err = fmt.Fprintf(c.out, "ok: %d workloads, %d services, %d policies\n", len(cfg.Workloads), len(cfg.Services), policies)
	return err
}

func serves(cfg *config.Config) bool {
	for _, s := range cfg.Services {
		if s.Listen.IsValid() {
			return true
		}
	}
	return false
}

type schemaCommand struct {
	Key    string `arg:"" optional:"" help:"A key to describe, such as workloads.select or bindings.mode."`
	Policy bool   `help:"Print the Cedar schema that policies are checked against."`
}

func (cmd schemaCommand) Run(c *console) error {
	text := string(config.Schema())
	if cmd.Policy {
		text = policy.Schema()
	}
	if cmd.Key != "" {
		var ok bool
		if text, ok = config.Describe(cmd.Key); !ok {
			return fmt.Errorf("there is no key %q; see all with: ward schema", cmd.Key)
		}
	}
	_, err := fmt.Fprintln(c.out, text)
	return err
}

type upCommand struct {
	Check bool   `help:"End when all calls are made: 0 when each ended as it should, else 1, within 60 s."`
	JSON  bool   `help:"One JSON object per call."`
	Dir   string `type:"path" placeholder:"DIR" help:"Keep config, policies, keys and the audit trail in DIR (default: ~/.local/state/ward)."`
}

func (cmd upCommand) Run(c *console) error {
	dir := cmd.Dir
	if dir == "" {
		var err error
		if dir, err = stateDir(); err != nil {
			return fmt.Errorf("no folder to keep state in: %w; name one with --dir DIR", err)
		}
	}
	err := up.Run(c.ctx, up.Options{Dir: filepath.Clean(dir), Check: cmd.Check, JSON: cmd.JSON, Version: versionText(), Out: c.out, Err: c.err})
	return listErrors(c.err, err)
}

type workloadCommand struct{}

func (workloadCommand) Run(c *console) error { return up.Workload(c.ctx, os.Stdin, c.out) }
