package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
)

// How long the files must have been left alone before they are read, and how long a config that is not whole may still
// be in the making before anybody is told. Editors write in steps.
const (
	settle = 20 * time.Millisecond
	making = 500 * time.Millisecond
)

// watch is how a role follows its config.
type watch struct {
	log     *zap.Logger
	load    func() (*config.Config, error)
	current func() *config.Config
	apply   func(*config.Config) error // it has said itself why not, when it fails
	refuse  func(error)                // told of a config that is not whole
}

// run reads the config anew when its folders change, and on SIGHUP, until ctx ends.
func (f watch) run(ctx context.Context) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		// The host has no watches left. A signal still works.
		f.log.Warn("the config's folders cannot be watched; send SIGHUP after a change", zap.Error(err))
		w = &fsnotify.Watcher{}
	} else {
		defer func() { _ = w.Close() }()
		f.lookAt(w)
	}
	// What changed between the reading of the config and this moment was not seen: look once.
	quiet, patience := time.After(settle), time.After(making)
	files := measure(f.current())
	for {
		told := false // somebody has asked for it, and is told at once
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			told = true
		case <-w.Errors:
			quiet = time.After(settle) // events were lost: look
			continue
		case e := <-w.Events:
			if name := filepath.Base(e.Name); strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "..") {
				continue // half-written files of those who rename them afterwards
			}
			if patience == nil {
				patience = time.After(making)
			}
			quiet = time.After(settle)
			continue
		case <-quiet:
			if patience != nil && files.shrunk() { // the beginning of a config may be one, without what it denies at its end
				quiet = time.After(settle)
				continue
			}
		case <-patience:
			told = true
		}
		quiet = nil
		f.lookAt(w)                    // first: a folder may have come, and what is put into it from here on is seen
		before := measure(f.current()) // what is written from here on may not be in what is read
		next, err := f.load()
		switch {
		case err == nil:
			patience = nil
			_ = f.apply(next)
			files = measure(next)
			maps.Copy(files, before)
			if f.lookAt(w) { // the policies lie elsewhere now, where a change since they were read was not seen
				quiet = time.After(settle)
			}
		case told:
			patience = nil
			f.refuse(err)
		}
	}
}

// lookAt watches the folders from which the config comes. A folder is watched, and not the files in it, because those
// are replaced. It reports whether one of them was not watched before.
func (f watch) lookAt(w *fsnotify.Watcher) (more bool) {
	if w.Events == nil {
		return false
	}
	before := len(w.WatchList())
	cfg := f.current()
	main := filepath.Dir(cfg.File())
	for _, dir := range []string{main, filepath.Join(main, "conf.d"), cfg.Policies.Dir} {
		if err := w.Add(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			f.log.Warn("a folder of the config cannot be watched; send SIGHUP after a change", zap.String("folder", dir), zap.Error(err))
		}
	}
	return len(w.WatchList()) > before
}

// measured are the config's files as they were when it was read.
type measured map[string]os.FileInfo

func measure(cfg *config.Config) measured {
	m := measured{}
	for _, name := range cfg.Files() {
		if info, err := os.Stat(name); err == nil {
			m[name] = info
		}
	}
	return m
}

// shrunk reports whether a file has become shorter in its place. Whoever writes one so may not have come to its end; a
// file that is renamed into place is another one, and whole.
func (m measured) shrunk() bool {
	for name, was := range m {
		if is, err := os.Stat(name); err == nil && os.SameFile(was, is) && is.Size() < was.Size() {
			return true
		}
	}
	return false
}
