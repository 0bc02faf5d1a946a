package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/wardmesh/ward/agent/admin"
	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/agent/daemon"
)

// inForce waits until the config on disk is the one that is used.
func (r *running) inForce() {
	r.clinic.Helper()
	digest := r.clinic.config().Digest()
	r.until("has the config on disk in force", func(s admin.Status) bool { return s.Config == digest && s.Healthy() })
}

// policySet waits until the policies are others than before.
func (r *running) policyChanges(n int) {
	r.clinic.Helper()
	r.until("uses the policies on disk", func(admin.Status) bool { return len(r.events("config changed")) >= n })
}

func TestWatch(t *testing.T) {
	deny := "deny: [/app/other]\n"
	for name, test := range map[string]func(t *testing.T, c *clinic, r *running){
		"rename into place": func(_ *testing.T, c *clinic, r *running) {
			c.put("etc/ward.yaml", c.text()+deny)
			r.inForce()
		},
		"written in place": func(t *testing.T, c *clinic, r *running) {
			if err := os.WriteFile(c.file, []byte(c.text()+deny), 0o600); err != nil {
				t.Fatal(err)
			}
			r.inForce()
		},
		"as editors do": func(t *testing.T, c *clinic, r *running) { // backup, swap and probe files beside it
			text := []byte(c.text() + deny)
			err := errors.Join(os.WriteFile(c.dir+"/etc/4913", nil, 0o600), os.Remove(c.dir+"/etc/4913"),
				os.WriteFile(c.dir+"/etc/.ward.yaml.swp", []byte("x"), 0o600), os.Rename(c.file, c.file+"~"),
				os.WriteFile(c.file, text, 0o600), os.Remove(c.file+"~"), os.Remove(c.dir+"/etc/.ward.yaml.swp"))
			if err != nil {
				t.Fatal(err)
			}
			r.inForce()
			if bad := r.events("config refused"); len(bad) > 0 {
				t.Errorf("the steps in between were taken for mistakes: %q", bad)
			}
		},
		"conf.d that comes later, goes, and comes again": func(t *testing.T, c *clinic, r *running) {
			for range 2 {
				c.put("etc/conf.d/deny.yaml", deny)
				r.inForce()
				c.put("etc/conf.d/deny.yaml", "deny: [/app/test]\n")
				r.inForce()
				if err := os.RemoveAll(filepath.Join(c.dir, "etc/conf.d")); err != nil {
					t.Fatal(err)
				}
				r.inForce()
			}
		},
		"policies": func(t *testing.T, c *clinic, r *running) {
			c.put("etc/policy/b.cedar", `@id("none") forbid (principal, action, resource);`+"\n")
			r.policyChanges(1)
			c.app(ehr).expect(403)
			if err := os.Remove(filepath.Join(c.dir, "etc/policy/b.cedar")); err != nil {
				t.Fatal(err)
			}
			r.policyChanges(2)
			c.app(ehr).expect(200)
			// The folder may become another one, and is followed there.
			c.put("etc/second/a.cedar", physician)
			c.edit("dir: policy", "dir: second")
			r.inForce()
			c.put("etc/second/b.cedar", `@id("none") forbid (principal, action, resource);`+"\n")
			r.policyChanges(4)
			c.app(ehr).expect(403)
		},
		"half a file": func(t *testing.T, c *clinic, r *running) {
			whole, digest := c.text(), c.config().Digest()
			f, err := os.OpenFile(c.file, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			half := strings.Index(whole, "services:") + 40
			if _, err := f.WriteString(whole[:half]); err != nil {
				t.Fatal(err)
			}
			s := r.until("tells of the half", func(s admin.Status) bool { return !s.Healthy() })
			if s.Config != digest || !strings.Contains(s.Problems[0], "ward.yaml:") {
				t.Errorf("%+v", s)
			}
			if _, err := f.WriteString(whole[half:] + deny); err != nil {
				t.Fatal(err)
			}
			r.inForce()
			r.until("has the refusal in its trail", func(admin.Status) bool { return len(r.events("config refused")) > 0 })
			if got := r.events("config refused"); len(got) != 1 {
				t.Errorf("%q", got)
			}
		},
		"bad for a while": func(t *testing.T, c *clinic, r *running) {
			digest := c.config().Digest()
			back := c.edit("unix.uid", "unix.usr")
			r.until("tells of it", func(s admin.Status) bool { return !s.Healthy() && s.Config == digest })
			back()
			r.until("is well again", func(s admin.Status) bool { return s.Healthy() && s.Config == digest })
			c.app(ehr).expect(200)
		},
		"a signal": func(t *testing.T, c *clinic, r *running) {
			// What is outside the folders that are watched is read when a signal asks for it.
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			r.inForce()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t)
			r := c.start(config.RoleRun, c.watching)
			c.app(ehr).expect(200)
			test(t, c, r)
		})
	}
}

// Containers' config is a folder of links to a folder of links, of which one is replaced.
func TestWatchFollowsALinkThatIsReplaced(t *testing.T) {
	c := newClinic(t)
	text := c.text()
	put := func(version, text string) {
		c.put("etc/.."+version+"/ward.yaml", text)
		tmp := filepath.Join(c.dir, "etc/..data_tmp")
		if err := errors.Join(os.Symlink(".."+version, tmp), os.Rename(tmp, filepath.Join(c.dir, "etc/..data"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(c.file); err != nil {
		t.Fatal(err)
	}
	put("2026_1", text)
	if err := os.Symlink("..data/ward.yaml", c.file); err != nil {
		t.Fatal(err)
	}
	r := c.start(config.RoleRun, c.watching)
	put("2026_2", text+"deny: [/app/test]\n")
	r.inForce()
	put("2026_3", text)
	r.inForce()
	r.policyChanges(2) // it is in force before it is in the trail
	if got := r.events("config changed"); len(got) != 2 || slices.Contains(got, "") {
		t.Errorf("%q", got)
	}
}

// A service manager that has asked for a reload is told when it is over, also when there was nothing to take.
func TestSignalIsAnswered(t *testing.T) {
	c := newClinic(t)
	begun, over := make(chan struct{}, 64), make(chan struct{}, 64)
	r := c.start(config.RoleRun, c.watching, func(o *daemon.Options) {
		o.Reloading, o.Reloaded = func() { begun <- struct{}{} }, func() { over <- struct{}{} }
	})
	<-over // it looks once at the start
	<-begun
	c.edit("unix.uid", "unix.usr")
	r.until("tells of it", func(s admin.Status) bool { return !s.Healthy() })
	for len(begun) > 0 {
		<-begun
		<-over
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-begun
	<-over
}
