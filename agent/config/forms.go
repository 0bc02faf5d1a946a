package config

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// text is any text of at least one and at most limit bytes.
func text(into *string, what string, limit int) value {
	return scalar[string]{into, form[string]{
		what: what,
		parse: func(_ *decoder, s string) (string, *fault) {
			switch {
			case s == "":
				return "", &fault{codeText, "the text is empty", "write " + what + ", or remove the key"}
			case len(s) > limit:
				return "", &fault{codeText, fmt.Sprintf("the text has %d bytes; %d are allowed", len(s), limit), "shorten it"}
			case strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }):
				return "", &fault{codeText, "the text holds a line break or another character that cannot be seen", "write it on one line, without such characters"}
			}
			return s, nil
		},
		props: map[string]any{"type": "string", "minLength": 1, "maxLength": limit},
	}}
}

// matching is text of one pattern.
func matching(into *string, what, re, advice string) value {
	return scalar[string]{into, form[string]{
		what: what,
		parse: func(_ *decoder, s string) (string, *fault) {
			if !regexp.MustCompile(re).MatchString(s) {
				return "", &fault{codeText, quote(s) + " is not " + what, advice}
			}
			return s, nil
		},
		props: map[string]any{"type": "string", "pattern": re},
	}}
}

// word is one of the given words. later are words that are known and not accepted.
func word(into *string, words []string, later ...string) value {
	return scalar[string]{into, form[string]{
		what: "one of " + strings.Join(words, ", "),
		parse: func(_ *decoder, s string) (string, *fault) {
			switch {
			case slices.Contains(words, s):
				return s, nil
			case slices.Contains(later, s):
				return "", &fault{codeUnsupported, quote(s) + " is not supported by this version of Ward", "use " + strings.Join(words, " or ")}
			}
			return "", &fault{codeWord, quote(s) + " is not one of " + strings.Join(words, ", "), suggest(s, words, "")}
		},
		props: map[string]any{"type": "string", "enum": words},
	}}
}

// flag is true or false, spelt so: YAML 1.1's yes and on are text here.
func flag(into *bool) value {
	return scalar[bool]{into, form[bool]{
		what: "true or false",
		tags: []string{"!!bool"},
		parse: func(_ *decoder, s string) (bool, *fault) {
			switch s {
			case "true":
				return true, nil
			case "false":
				return false, nil
			}
			return false, &fault{codeWord, quote(s) + " is not true or false", "write true or false"}
		},
		props: map[string]any{"type": "boolean"},
	}}
}

// duration is a Go duration between two bounds.
func duration(into *time.Duration, least, most time.Duration) value {
	return scalar[time.Duration]{into, form[time.Duration]{
		what: fmt.Sprintf("a duration from %s to %s", Duration(least), Duration(most)),
		tags: []string{"!!int", "!!float"},
		parse: func(_ *decoder, s string) (time.Duration, *fault) {
			v, err := time.ParseDuration(s)
			switch {
			case err != nil && isNumber(s):
				return 0, &fault{codeDuration, quote(s) + " has no unit", "write " + s + "s for seconds, or use m or h"}
			case err != nil:
				return 0, &fault{codeDuration, quote(s) + " is not a duration", "write, for example, 90s, 5m or 24h"}
			case v < least:
				return 0, &fault{codeRange, s + " is too short", "use at least " + Duration(least)}
			case v > most:
				return 0, &fault{codeRange, s + " is too long", "use at most " + Duration(most)}
			}
			return v, nil
		},
		props: map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`},
	}}
}

// Duration writes a duration as a person would: 5m, not 5m0s.
func Duration(v time.Duration) string {
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

func isNumber(s string) bool { _, err := strconv.ParseFloat(s, 64); return err == nil }

// size is a number of bytes, with or without a unit.
func size(into *int64, least, most int64) value {
	units := []struct {
		name  string
		bytes int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}
	written := func(n int64) string {
		for _, u := range slices.Backward(units) {
			if n >= u.bytes && n%u.bytes == 0 {
				return fmt.Sprintf("%d%s", n/u.bytes, u.name)
			}
		}
		return strconv.FormatInt(n, 10)
	}
	return scalar[int64]{into, form[int64]{
		what: fmt.Sprintf("a size from %s to %s", written(least), written(most)),
		tags: []string{"!!int"},
		parse: func(_ *decoder, s string) (int64, *fault) {
			number, unit := s, int64(1)
			for _, u := range units {
				if n, cut := strings.CutSuffix(s, u.name); cut {
					number, unit = n, u.bytes
				}
			}
			n, err := strconv.ParseUint(number, 10, 63)
			switch {
			case err != nil:
				return 0, &fault{codeSize, quote(s) + " is not a size", "write, for example, 64MiB; the units are KiB, MiB and GiB"}
			case n > uint64(math.MaxInt64/unit) || int64(n)*unit > most:
				return 0, &fault{codeRange, s + " is too much", "use at most " + written(most)}
			case int64(n)*unit < least:
				return 0, &fault{codeRange, s + " is too little", "use at least " + written(least)}
			}
			return int64(n) * unit, nil
		},
		props: map[string]any{"type": []string{"string", "integer"}, "pattern": "^[0-9]+(KiB|MiB|GiB)?$"},
	}}
}

// count is a whole number between two bounds.
func count(into *int, least, most int) value {
	return scalar[int]{into, form[int]{
		what: fmt.Sprintf("a number from %d to %d", least, most),
		tags: []string{"!!int"},
		parse: func(_ *decoder, s string) (int, *fault) {
			n, err := strconv.Atoi(s)
			switch {
			case err != nil || strconv.Itoa(n) != s:
				return 0, &fault{codeType, quote(s) + " is not a whole number", fmt.Sprintf("write a number from %d to %d", least, most)}
			case n < least || n > most:
				return 0, &fault{codeRange, s + " is out of range", fmt.Sprintf("use a number from %d to %d", least, most)}
			}
			return n, nil
		},
		props: map[string]any{"type": "integer", "minimum": least, "maximum": most},
	}}
}

// port is a TCP port.
func port(into *uint16) value {
	return scalar[uint16]{into, form[uint16]{
		what: "a port from 1 to 65535",
		tags: []string{"!!int"},
		parse: func(_ *decoder, s string) (uint16, *fault) {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
				return 0, &fault{codeAddress, quote(s) + " is not a port", "use a number from 1 to 65535"}
			}
			return uint16(n), nil
		},
		props: map[string]any{"type": "integer", "minimum": 1, "maximum": math.MaxUint16},
	}}
}

// instant is a time, RFC 3339, or a day, which begins at midnight UTC.
func instant(into *time.Time) value {
	return scalar[time.Time]{into, form[time.Time]{
		what: "a day such as 2026-11-20 (midnight UTC) or an RFC 3339 time",
		tags: []string{"!!timestamp"},
		parse: func(_ *decoder, s string) (time.Time, *fault) {
			for _, layout := range []string{time.DateOnly, time.RFC3339} {
				if t, err := time.Parse(layout, s); err == nil && t.Year() >= 1900 && t.Year() < 10000 {
					return t.UTC(), nil
				}
			}
			return time.Time{}, &fault{codeInstant, quote(s) + " is not a time", "write 2026-11-20, or 2026-11-20T14:30:00+01:00"}
		},
		props: map[string]any{"type": "string", "anyOf": []any{map[string]any{"format": "date"}, map[string]any{"format": "date-time"}}},
	}}
}
