package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// volumes is the space of each audit log's folder.
func (x *examination) volumes() (dirs []string, spaces []Space, unseen bool) {
	trails, unseen := x.trails()
	for _, dir := range trails {
		if s, err := x.host.Space(x.host.in(dir)); err == nil {
			dirs, spaces = append(dirs, dir), append(spaces, s)
		}
	}
	return dirs, spaces, unseen
}

// seen is the findings, or that there was something to look at that this user may not see.
func seen(out []Finding, unseen bool) []Finding {
	if unseen && len(out) == 0 {
		return skip(needRoot)
	}
	return out
}

func space(_ context.Context, x *examination) []Finding {
	var out []Finding
	dirs, spaces, unseen := x.volumes()
	for i, s := range spaces {
		const mend = "free space there, move audit.dir to a larger disk, or bound the log by audit.keep or audit.max_size"
		left := fmt.Sprintf("%s is left for the audit log in %s; audit.min_free is %s", bytesText(s.Free), dirs[i], bytesText(x.cfg.Audit.MinFree))
		switch {
		case s.Free < x.cfg.Audit.MinFree:
			out = append(out, fail(left, "what cannot be recorded does not happen: calls are refused", mend))
		case s.Free < 2*x.cfg.Audit.MinFree:
			out = append(out, warn(left, "below min_free calls are refused", mend))
		}
	}
	return seen(out, unseen)
}

// fullSoon is how many days ahead a full disk is worth an operator's attention.
const fullSoon = 14

func growth(_ context.Context, x *examination) []Finding {
	var out []Finding
	dirs, spaces, unseen := x.volumes()
	for i, dir := range dirs {
		held, daily, err := rate(x.host.in(dir), x.now)
		if os.IsPermission(err) && x.host.UID != 0 {
			return skip(needRoot)
		}
		room := float64(spaces[i].Free - x.cfg.Audit.MinFree)
		if err != nil || daily <= 0 || room/daily >= fullSoon || x.bounded(held, daily, room) {
			continue
		}
		out = append(out, warn(fmt.Sprintf("the audit log in %s grows by %s a day: its disk is full in %d days", dir, bytesText(int64(daily)), int(room/daily)),
			"from then on calls are refused", "move audit.dir to a larger disk, or bound the log by audit.keep or audit.max_size"))
	}
	return seen(out, unseen)
}

// bounded reports whether retention ends the growth before the disk does.
func (x *examination) bounded(held int64, daily, room float64) bool {
	a := x.cfg.Audit
	return a.MaxSize > 0 && float64(a.MaxSize-held) < room || a.Keep > 0 && daily*a.Keep.Hours()/24-float64(held) < room
}

// rate is how large a log is and by how many bytes a day it has grown in the last week. What has grown within an hour
// says nothing about a day.
func rate(dir string, now time.Time) (held int64, daily float64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	type segment struct {
		at   time.Time
		size int64
	}
	var segments []segment
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && strings.HasSuffix(e.Name(), ".log") {
			held += info.Size()
			segments = append(segments, segment{info.ModTime(), info.Size()})
		}
	}
	slices.SortFunc(segments, func(a, b segment) int { return a.at.Compare(b.at) })
	// A segment's time is its end, so what was written after the first one's end is the sizes of the others.
	since, grown := time.Time{}, int64(0)
	for _, s := range segments {
		switch {
		case now.Sub(s.at) > 7*24*time.Hour || since.IsZero():
			since, grown = s.at, 0
		default:
			grown += s.size
		}
	}
	if span := now.Sub(since); !since.IsZero() && span >= time.Hour {
		daily = float64(grown) / span.Hours() * 24
	}
	return held, daily, nil
}

func inodes(_ context.Context, x *examination) []Finding {
	var out []Finding
	dirs, spaces, unseen := x.volumes()
	for i, s := range spaces {
		if s.Inodes > 0 && s.InodeFree*20 < s.Inodes { // filesystems without a table of inodes count none
			out = append(out, warn(fmt.Sprintf("%d of %d inodes are left for the audit log in %s", s.InodeFree, s.Inodes, dirs[i]), "without one no new segment can be begun, and calls are refused",
				"df -i "+quoted(dirs[i])+"; remove what holds many small files"))
		}
	}
	return seen(out, unseen)
}

func secondDisk(_ context.Context, x *examination) []Finding {
	if x.cfg.Audit.Second == "" {
		return nil
	}
	first, err := x.nearest(x.cfg.Audit.Dir)
	second, err2 := x.nearest(x.cfg.Audit.Second)
	if x.host.UID != 0 && (errors.Is(err, fs.ErrPermission) || errors.Is(err2, fs.ErrPermission)) {
		return skip(needRoot)
	}
	if err != nil || err2 != nil || first.Device != second.Device {
		return nil
	}
	return []Finding{fail("audit.second lies on the same filesystem as audit.dir", "what keeps the first log from recording keeps the second one from it too",
		"mount another disk at "+quoted(x.cfg.Audit.Second)+", or name a folder on one at "+x.at("audit.second"))}
}

// nearest is the filesystem on which path lies, or will lie once it is made.
func (x *examination) nearest(path string) (Space, error) {
	for p := path; ; p = filepath.Dir(p) {
		s, err := x.host.Space(x.host.in(p))
		if !errors.Is(err, fs.ErrNotExist) || p == "/" || p == "." {
			return s, err
		}
	}
}

// bytesText is a size as config writes it.
func bytesText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(u.size)), ".0") + u.name
		}
	}
	return fmt.Sprintf("%dB", n)
}
