package attest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroup2Mount is where cgroup2 is mounted: /sys/fs/cgroup on most hosts, /sys/fs/cgroup/unified beside
// version 1. It returns an error that wraps fs.ErrNotExist where it is not mounted.
func Cgroup2Mount() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	points, err := parseMountinfo(b)
	if err != nil {
		return "", err
	}
	for _, point := range points {
		var st unix.Statfs_t
		// Something else may be mounted on top of it.
		if unix.Statfs(point, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return point, nil
		}
	}
	return "", fmt.Errorf("cgroup2: %w in /proc/self/mountinfo", fs.ErrNotExist)
}

// parseMountinfo returns the mount points of cgroup2 that show the whole of the reader's cgroup namespace
// (proc_pid_mountinfo(5)): one whose root is a part of it would give every path another meaning.
func parseMountinfo(file []byte) ([]string, error) {
	var points []string
	for line := range bytes.Lines(file) {
		before, after, found := strings.Cut(strings.TrimSuffix(string(line), "\n"), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 6 || len(kind) < 1 {
			return nil, errors.New("/proc/self/mountinfo is not as proc_pid_mountinfo(5) says")
		}
		if kind[0] != "cgroup2" || fields[3] != "/" {
			continue
		}
		point, err := unescape(fields[4])
		if err != nil {
			return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
		}
		points = append(points, point)
	}
	return points, nil
}

// unescape undoes the kernel's \ooo for space, tab, newline and backslash.
func unescape(s string) (string, error) {
	var b strings.Builder
	for {
		plain, rest, found := strings.Cut(s, `\`)
		b.WriteString(plain)
		if !found {
			return b.String(), nil
		}
		if len(rest) < 3 {
			return "", fmt.Errorf("an escape ends early in %q", s)
		}
		var c int
		for _, d := range []byte(rest[:3]) {
			if d < '0' || d > '7' {
				return "", fmt.Errorf("an escape is not octal in %q", s)
			}
			c = c<<3 | int(d-'0')
		}
		if c > 0xff {
			return "", fmt.Errorf("an escape is no byte in %q", s)
		}
		b.WriteByte(byte(c))
		s = rest[3:]
	}
}

// Cgroup is the path of p's cgroup in the cgroup2 hierarchy, as seen from this process's cgroup namespace. It
// is "" when there is none that can be seen from here: cgroup2 is not in use, the cgroup lies outside the
// namespace, or it has been removed.
func Cgroup(p Process) (string, error) {
	file, err := AppendProc(make([]byte, 0, 4096), p, "cgroup")
	if err != nil {
		return "", err
	}
	return parseCgroup(file)
}

// parseCgroup parses /proc/PID/cgroup (cgroups(7)). No cgroup's name holds a newline: the kernel refuses it.
func parseCgroup(file []byte) (string, error) {
	result, seen := "", false
	for line := range bytes.Lines(file) {
		line, ended := bytes.CutSuffix(line, []byte("\n"))
		hierarchy, rest, found := bytes.Cut(line, []byte(":"))
		controllers, p, found2 := bytes.Cut(rest, []byte(":"))
		if !ended || !found || !found2 || len(p) == 0 || p[0] != '/' {
			return "", errors.New("/proc/PID/cgroup is not as cgroups(7) says")
		}
		if string(hierarchy) != "0" {
			continue
		}
		if len(controllers) != 0 || seen {
			return "", errors.New("/proc/PID/cgroup: hierarchy 0 is not that of cgroup2")
		}
		seen = true
		// "/../x" lies outside the namespace's root; " (deleted)" has no members any more.
		if s := string(p); path.Clean(s) == s && s != "/.." && !strings.HasPrefix(s, "/../") && !strings.HasSuffix(s, " (deleted)") {
			result = s
		}
	}
	return result, nil
}
