package intercept

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/fsnotify/fsnotify"
	"github.com/mdlayher/netlink"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Run keeps the rules what Apply made them until ctx ends, and then leaves them standing: it writes them anew when a
// unit whose traffic is intercepted has started in another cgroup, and when somebody else has changed or removed them.
func (t *Table) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.watchTable(ctx) })
	g.Go(func() error { return t.watchUnits(ctx) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("intercept: %w", err)
	}
	return nil
}

// watchTable listens to what the kernel tells of every change of packet rules.
func (t *Table) watchTable(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch the packet rules: %w%s", err, hint(err))
	}
	t.repair() // what was changed before anybody listened
	for {
		// What the messages say is of no interest, nor is one that was lost: the table is read.
		if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the packet rules: %w", err)
		}
		t.repair()
	}
}

// repair writes the rules anew if they are not those that were written last.
func (t *Table) repair() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rules == nil {
		return
	}
	handles, err := readHandles()
	if err == nil && t.err == nil && maps.EqualFunc(handles, t.handles, slices.Equal[[]uint64]) {
		return
	}
	if errors.Is(err, unix.EINTR) { // the kernel tells that they changed while they were read; another message follows
		return
	}
	t.lost.Inc()
	t.err = errors.New("the packet rules were changed by somebody else")
	if err := t.write(*t.rules, t.cgroups); err != nil {
		t.o.Log.Error("the packet rules were changed by somebody else, and cannot be written anew", zap.Error(err))
		return
	}
	t.o.Log.Warn("the packet rules were changed by somebody else, and have been written anew; does a firewall flush all tables when it reloads?")
}

// watchUnits listens to the folders in which units appear.
func (t *Table) watchUnits(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the units: %w", err)
	}
	defer func() { _ = w.Close() }()
	for {
		if err := t.follow(w); err != nil {
			return fmt.Errorf("watch the units: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.changed:
		case <-w.Events: // a slice or a unit has come or gone: all is looked up again
		case err := <-w.Errors:
			if err != nil && !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch the units: %w", err)
			}
		}
	}
}

// follow watches the slices there are, and then writes the rules of the units that run now.
func (t *Table) follow(w *fsnotify.Watcher) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rules == nil || len(t.rules.units()) == 0 {
		for _, dir := range w.WatchList() {
			_ = w.Remove(dir)
		}
		return nil
	}
	// The root of the tree too: system.slice may not exist yet.
	dirs, err := slicesBelow(t.o.Cgroups)
	if err != nil {
		return t.unseen(err)
	}
	for _, dir := range append(dirs, t.o.Cgroups) {
		if err := w.Add(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	cgroups, err := locate(t.o.Cgroups, t.rules.units())
	if err != nil {
		return t.unseen(err)
	}
	if maps.Equal(cgroups, t.cgroups) {
		return nil
	}
	before := t.cgroups
	if err := t.write(*t.rules, cgroups); err != nil {
		t.o.Log.Error("the traffic of a unit is not intercepted", zap.Error(err))
		return nil
	}
	for unit := range t.rules.units() {
		if now := cgroups[unit]; now != before[unit] {
			t.o.Log.Info("a unit whose traffic is intercepted has started or stopped", zap.String("unit", unit), zap.Bool("runs", now.id != 0))
		}
	}
	return nil
}

// unseen notes that the units cannot be told apart. The rules that stand are better than none.
func (t *Table) unseen(err error) error {
	t.err = fmt.Errorf("intercept: %w", err)
	t.o.Log.Error("units cannot be found; the rules stay as they are", zap.Error(err))
	return nil
}
