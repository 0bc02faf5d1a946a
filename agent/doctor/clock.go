package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func clockSynced(_ context.Context, x *examination) []Finding {
	c, err := x.host.Clock()
	if err != nil {
		return skip("cannot read the kernel's clock")
	}
	if c.Synced {
		return nil
	}
	return []Finding{warn("nothing keeps this host's clock right", "SVIDs and tokens are accepted too long or refused too early, and the audit log's times prove little",
		"timedatectl set-ntp true, or run chronyd")}
}

// tolerance is by how much a file may be younger than the clock: filesystems over a network have clocks of their own.
const tolerance = time.Minute

// fromTheFuture finds a clock that was set back by what was written before it was.
func fromTheFuture(_ context.Context, x *examination) []Finding {
	trails, unseen := x.trails()
	for _, dir := range trails {
		entries, err := os.ReadDir(x.host.in(dir))
		if err != nil {
			if os.IsPermission(err) && x.host.UID != 0 {
				return skip(needRoot)
			}
			continue
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !strings.HasSuffix(e.Name(), ".log") {
				continue
			}
			if ahead := info.ModTime().Sub(x.now); ahead > tolerance {
				return []Finding{fail(fmt.Sprintf("%s was written %s from now", filepath.Join(dir, e.Name()), ahead.Round(time.Minute)),
					"the clock has been set back: certificates that should have ended are valid again, and the audit log's times overlap",
					"set the clock right (chronyc tracking, timedatectl), then restart Ward")}
			}
		}
	}
	return seen(nil, unseen)
}

func issuerTime(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, t := range x.cfg.Tokens {
		url := t.JWKSURI
		if url == "" {
			url = t.Issuer
		}
		before := x.host.Now()
		date, err := x.host.Date(ctx, url, t.CAFile)
		if err != nil {
			out = append(out, warn(t.Issuer+" does not say what time it is", "its clock cannot be compared, and its keys may not be refreshed either", "curl -sI "+quoted(url)))
			continue
		}
		// Date counts whole seconds, and the answer took its time.
		off := date.Sub(before)
		if d := off.Abs() - x.host.Now().Sub(before) - time.Second; d > t.Leeway {
			out = append(out, fail(fmt.Sprintf("%s is %s from this host's clock; leeway is %s", t.Issuer, off.Abs().Round(time.Second), t.Leeway),
				"its tokens are refused as not yet valid or as ended", "chronyc tracking here, and on the issuer's host"))
		}
	}
	return out
}
