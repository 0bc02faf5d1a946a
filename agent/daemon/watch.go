package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// How long the files must have been left alone before they are read, and how long a config that is not whole may still
// be in the making before anybody is told. Editors write in steps.
const (
	settle = 20 * time.Millisecond
	making = 500 * time.Millisecond
)

// watch reloads when the config's folders change, and on SIGHUP, until ctx ends.
func (d *Daemon) watch(ctx context.Context) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		// The host has no watches left. A signal still works.
		d.log.Warn("the config's folders cannot be watched; send SIGHUP after a change", zap.Error(err))
		w = &fsnotify.Watcher{Events: make(chan fsnotify.Event), Errors: make(chan error)}
	} else {
		defer w.Close()
		d.lookAt(w)
	}
	var quiet, patience <-chan time.Time
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
			if e.Op != fsnotify.Chmod && filepath.Base(e.Name)[0] == '.' {
				continue // half-written files of those who rename them afterwards
			}
			if quiet == nil {
				patience = time.After(making)
			}
			quiet = time.After(settle)
			continue
		case <-quiet:
		case <-patience:
			told = true
		}
		quiet = nil
		next, err := d.o.Load()
		if err == nil {
			patience = nil
			_ = d.Reload(ctx, next) // it has said why not
			if w.WatchList() != nil {
				d.lookAt(w)
			}
			continue
		}
		if told {
			patience = nil
			d.keep(fmt.Errorf("%w", err))
		}
	}
}

// lookAt watches the folders from which the config comes. A folder is watched, and not the files in it, because those
// are replaced.
func (d *Daemon) lookAt(w *fsnotify.Watcher) {
	cfg := d.config()
	main := filepath.Dir(cfg.File())
	for _, dir := range []string{main, filepath.Join(main, "conf.d"), cfg.Policies.Dir} {
		if err := w.Add(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.log.Warn("a folder of the config cannot be watched; send SIGHUP after a change", zap.String("folder", dir), zap.Error(err))
		}
	}
}
