package resolver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// The lines around Ward's block in resolv.conf.
const (
	blockBegin = "# ward mesh: begin (removed by ward mesh clear)"
	blockEnd   = "# ward mesh: end"
	backup     = ".ward-backup"
)

// withBlock puts Ward's block before everything else.
func withBlock(text string, z Zone) string {
	return blockBegin + "\nnameserver " + z.Server.Addr().String() + "\n" + blockEnd + "\n" + withoutBlock(text)
}

// withoutBlock takes every whole block of Ward's out. A begin without an end is left: what follows may be anybody's.
func withoutBlock(text string) string {
	for {
		from := strings.Index(text, blockBegin+"\n")
		if from < 0 || from > 0 && text[from-1] != '\n' {
			return text
		}
		length := strings.Index(text[from:], "\n"+blockEnd+"\n")
		if length < 0 {
			return text
		}
		text = text[:from] + text[from+length+len("\n"+blockEnd+"\n"):]
	}
}

// plain reads resolv.conf, if it is nobody's to generate.
func (o Options) plain() (string, fs.FileMode, error) {
	path := o.at(resolvConf)
	fi, err := os.Lstat(path)
	if err != nil {
		return "", 0, fmt.Errorf("resolver: %w", err)
	}
	if !fi.Mode().IsRegular() {
		to, _ := os.Readlink(path)
		return "", 0, fmt.Errorf("resolver: %s is not a plain file (it leads to %q) and is kept by somebody else; send the zone to Ward's responder there, and say mesh.resolver: none", path, to)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", 0, fmt.Errorf("resolver: %w", err)
	}
	return string(b), fi.Mode().Perm(), nil
}

func (o Options) applyFile(z Zone) error {
	path := o.at(resolvConf)
	text, mode, err := o.plain()
	if err != nil {
		return err
	}
	if z.Server.Port() != 53 {
		return fmt.Errorf("resolver: %s names servers on port 53 only, and mesh.dns is %s", path, z.Server)
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		for i := 1; len(f) > 0 && f[0] == "options" && i < len(f); i++ {
			if f[i] == "rotate" { // resolv.conf(5)
				return fmt.Errorf("resolver: %s has options rotate, by which look-ups for the zone would go to other servers; remove it, or say mesh.resolver: none", path)
			}
		}
	}
	want := withBlock(text, z)
	if want == text {
		return nil
	}
	if err := o.keepBackup(withoutBlock(text), mode); err != nil {
		return fmt.Errorf("resolver: %w%s", err, writable(err))
	}
	if err := replaceFile(path, []byte(want), mode); err != nil {
		return fmt.Errorf("resolver: %w%s", err, writable(err))
	}
	return nil
}

// keepBackup writes down what was there before Ward. What a backup holds already was there before a crash.
func (o Options) keepBackup(text string, mode fs.FileMode) error {
	path := o.at(resolvConf) + backup
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return replaceFile(path, []byte(text), mode)
}

func writable(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "; let ward mesh write /etc, or put Ward's responder first in resolv.conf yourself and say mesh.resolver: none"
	case errors.Is(err, syscall.EBUSY):
		return "; it is a mount, as in containers: whoever mounts it must name Ward's responder there, and mesh.resolver: none"
	}
	return ""
}

// removeFile takes the block out and leaves what others have written since.
func (o Options) removeFile() (bool, error) {
	text, mode, err := o.plain()
	done := false
	if err == nil {
		if without := withoutBlock(text); without != text {
			if err := replaceFile(o.at(resolvConf), []byte(without), mode); err != nil {
				return false, fmt.Errorf("resolver: %w%s", err, writable(err))
			}
			done = true
		}
	}
	if err := os.Remove(o.at(resolvConf) + backup); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return done, fmt.Errorf("resolver: %w", err)
	}
	return done, nil // a file that is not plain is not Ward's
}

// watchFile puts the block back when somebody, such as a DHCP client, has written the file anew.
func (o Options) watchFile(ctx context.Context, z Zone) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	defer func() { _ = w.Close() }()
	path := o.at(resolvConf)
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			if filepath.Base(e.Name) != filepath.Base(path) || !e.Has(fsnotify.Create) && !e.Has(fsnotify.Write) {
				continue
			}
		case err := <-w.Errors:
			if err != nil && !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("resolver: %w", err)
			}
		}
		if err := o.applyFile(z); err != nil {
			o.Log.Error("the zone is not known to the host any more", zap.String("resolver", string(File)), zap.Error(err))
		}
	}
}
