package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/wardmesh/ward/agent/config"
)

// defaultConfig is where an installed Ward keeps its config.
const defaultConfig = "/etc/ward/ward.yaml"

// configFlag is how commands find the daemon that they are about: by its config. Without --config that is the
// installed one, or else the demonstration's (ward up).
type configFlag struct {
	Config string `short:"c" env:"WARD_CONFIG" placeholder:"FILE" help:"The daemon's config (default: /etc/ward/ward.yaml, else that of ward up)."`
}

// path gives the config file that is meant.
func (f configFlag) path() (string, error) {
	if f.Config != "" {
		return f.Config, nil
	}
	tried := []string{defaultConfig}
	if dir, err := stateDir(); err == nil {
		tried = append(tried, filepath.Join(dir, "ward.yaml"))
	}
	for _, p := range tried {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			return p, nil
		}
	}
	return "", fmt.Errorf("no config: none of %v exists; name one with --config FILE, or try Ward first with: ward up", tried)
}

// load reads the config that is meant.
func (f configFlag) load() (*config.Config, error) {
	p, err := f.path()
	if err != nil {
		return nil, err
	}
	return config.Load(p, config.Options{})
}

// stateDir is where the demonstration lives: $XDG_STATE_HOME/ward or ~/.local/state/ward.
func stateDir() (string, error) {
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "ward"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "state", "ward"), nil
}
