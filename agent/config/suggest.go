package config

import "strings"

// suggest is the advice for a name that is not among those that exist: the one that was probably meant, or, when
// they are few, all of them.
func suggest(name string, among []string, intro string) string {
	if best := nearest(name, among); best != "" {
		return "did you mean " + quote(best) + "?"
	}
	switch {
	case len(among) == 0:
		return "remove it"
	case intro == "":
		return "use one of them"
	case len(among) > 24:
		return "ward schema lists what exists"
	}
	return intro + strings.Join(among, ", ")
}

// nearest is the name that differs least, if it differs little; "" otherwise.
func nearest(name string, among []string) string {
	const most = 1000 // comparing is quadratic in the names' lengths; beyond this nobody waits for a suggestion
	if len(among) > most || len(name) > 256 {
		return ""
	}
	fold := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "_")) }
	best, least := "", max(len(name)/3, 1)+1
	for _, candidate := range among {
		// A key that was meant may have been written without its prefix: `uid` for `unix.uid`.
		if _, tail, dotted := strings.Cut(candidate, "."); dotted && tail == name {
			return candidate
		}
		if n := distance(fold(name), fold(candidate)); n < least {
			best, least = candidate, n
		}
	}
	return best
}

// distance is how many letters must be put in, taken out, changed or swapped with their neighbour to make a of b.
func distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			change := row[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			next[j] = min(row[j]+1, next[j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
