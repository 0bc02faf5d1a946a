package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/wardmesh/ward/agent/config"
)

// How far ahead an end is worth an operator's attention.
const (
	soon        = 30 * 24 * time.Hour // of what does not renew itself
	observeSoon = 7 * 24 * time.Hour
)

func expiring(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		for _, e := range r.status.Expires {
			left := e.Ends.Sub(x.now)
			const means = "when it has ended, no call is authenticated with it any more"
			const mend = "ward status shows what renews it; a CA is replaced by a new one well before its end"
			switch {
			case e.Ends.IsZero():
			case left <= 0:
				out = append(out, fail(fmt.Sprintf("%s ended on %s", e.What, e.Ends.UTC().Format(time.DateOnly)), means, mend))
			case left < min(soon, x.cfg.Authority.CATTL/6):
				out = append(out, warn(fmt.Sprintf("%s ends on %s, in %s", e.What, e.Ends.UTC().Format(time.DateOnly), days(left)), means, mend))
			}
		}
	}
	return out
}

func renewals(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		s := r.status
		switch end := s.Identity.EarliestEnd; {
		case !end.IsZero() && end.Before(x.now):
			out = append(out, fail("an SVID has ended and was not renewed", "its workload can make no call", "ward entries shows which and why; ward status"))
		case s.Authority.Issuance != "" && s.Authority.Issuance != "ok", s.Identity.Renewals != "" && s.Identity.Renewals != "working":
			out = append(out, fail("SVIDs are not renewed", "workloads lose their identity when the SVIDs that they hold end, the first "+when(end, x.now), "ward entries shows which and why; ward status"))
		}
	}
	return out
}

func when(t, now time.Time) string {
	if t.IsZero() {
		return "soon"
	}
	return "in " + days(t.Sub(now))
}

func observing(_ context.Context, x *examination) []Finding {
	var out []Finding
	for i, s := range x.cfg.Services {
		if s.Mode != config.ModeObserve {
			continue
		}
		left := s.ObserveUntil.Sub(x.now)
		day, at := s.ObserveUntil.UTC().Format(time.DateOnly), x.at(fmt.Sprintf("services[%d].observe_until", i))
		switch {
		case left <= 0:
			out = append(out, warn(s.Name+" has enforced since "+day+", though config says observe", "whoever reads the config thinks that nothing is refused", "remove mode: observe and observe_until at "+at))
		case left < observeSoon:
			out = append(out, warn(s.Name+" enforces from "+day+", in "+days(left), "calls that were let through and recorded as WOULD are refused from then on",
				"ward policy replay shows which; then wait, or move observe_until at "+at))
		}
	}
	return out
}

func issuers(ctx context.Context, x *examination) []Finding {
	var out []Finding
	for _, r := range x.answering(ctx) {
		for _, i := range r.status.Issuers {
			switch {
			case i.State == "ok" || strings.HasPrefix(i.State, "ok,") && !strings.Contains(i.State, "failed"):
			case strings.HasPrefix(i.State, "ok"):
				out = append(out, warn(i.Issuer+": "+i.State, "its tokens are accepted by the keys that are at hand, until the issuer changes them", "curl -sI "+quoted(i.Issuer)))
			default:
				out = append(out, fail(i.Issuer+": "+i.State, "every call with a token of this issuer is refused", "curl -sI "+quoted(i.Issuer)+"; or name a jwks_file"))
			}
		}
	}
	return out
}

// days is a duration as an operator plans by it.
func days(d time.Duration) string {
	if d >= 48*time.Hour {
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return d.Round(time.Minute).String()
}
