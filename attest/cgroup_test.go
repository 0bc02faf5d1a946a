package attest

import (
	"os"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCgroup(t *testing.T) {
	for name, c := range map[string]struct {
		file, want string
		fails      bool
	}{
		"cgroup2 alone":           {file: "0::/system.slice/a.service\n", want: "/system.slice/a.service"},
		"beside version 1":        {file: "9:name=systemd:/x\n4:memory:/y\n0::/z\n", want: "/z"},
		"a colon in the name":     {file: "0::/system.slice/a:b.service\n", want: "/system.slice/a:b.service"},
		"the root":                {file: "0::/\n", want: "/"},
		"version 1 alone":         {file: "9:name=systemd:/x\n", want: ""},
		"outside the namespace":   {file: "0::/../system.slice/a.service\n", want: ""},
		"removed":                 {file: "0::/system.slice/a.service (deleted)\n", want: ""},
		"none":                    {file: "", want: ""},
		"a version 1 name of 0":   {file: "0:name=x:/system.slice/a.service\n", fails: true},
		"twice":                   {file: "0::/a\n0::/system.slice/a.service\n", fails: true},
		"no path":                 {file: "0::\n", fails: true},
		"a relative path":         {file: "0::system.slice\n", fails: true},
		"cut off":                 {file: "0::/system.slice/a.serv", fails: true},
		"too few fields":          {file: "0:/\n", fails: true},
		"dots within":             {file: "0::/user.slice/../system.slice/a.service\n", want: ""},
		"a folder whose name ...": {file: "0::/.../a.service\n", want: "/.../a.service"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseCgroup([]byte(c.file))
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add([]byte("0::/system.slice/a.service\n"))
	f.Add([]byte("9:name=systemd:/x\n4:memory:/y\n0::/z (deleted)\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		p, err := parseCgroup(file)
		if err != nil || p == "" {
			return
		}
		if p[0] != '/' || path.Clean(p) != p || strings.Contains(p, "\n") || strings.HasPrefix(p, "/../") {
			t.Errorf("%q is no cgroup's path", p)
		}
	})
}

func TestParseMountinfo(t *testing.T) {
	const file = `41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
42 31 0:38 /../.. /outside rw,relatime shared:1 - cgroup2 cgroup2 rw
43 31 0:38 / /with\040space rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw
`
	got, err := parseMountinfo([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/sys/fs/cgroup/unified", "/with space"}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"x\n", "1 2 3 / /a rw - \n", `1 2 0:3 / /a\04 rw - cgroup2 x rw`, `1 2 0:3 / /a\999 rw - cgroup2 x rw`} {
		if _, err := parseMountinfo([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzParseMountinfo(f *testing.F) {
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte(`43 31 0:38 / /with\040space rw,relatime shared:1 - cgroup2 cgroup2 rw`))
	f.Fuzz(func(t *testing.T, file []byte) { _, _ = parseMountinfo(file) })
}
