package fhir

import (
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// path reads the value of an element on a compartment path: an object, or an array of objects. set has a bit
// for each of paths that led here; leaf means that the element is the Reference at a path's end.
func (w *walk) path(res *resource, paths [][]string, set uint64, leaf bool, depth int) error {
	if w.kind() == jsontext.KindBeginArray {
		return w.array(func(i int) error {
			if err := w.step(res, paths, set, leaf, depth); err != nil {
				return under(err, index(i))
			}
			return nil
		})
	}
	return w.step(res, paths, set, leaf, depth)
}

func (w *walk) step(res *resource, paths [][]string, set uint64, leaf bool, depth int) error {
	if leaf {
		return w.reference(res)
	}
	return w.object(func(name []byte) error {
		next, leaf := live(paths, set, depth, name)
		if next == 0 {
			if alikePath(paths, set, depth, name) {
				return w.refuse(Invalid, wrongCase)
			}
			return w.skip()
		}
		if err := w.path(res, paths, next, leaf, depth+1); err != nil {
			return under(err, string(name))
		}
		return nil
	})
}

// live is the part of set whose paths go on through name at this depth, and whether one of them ends there.
func live(paths [][]string, set uint64, depth int, name []byte) (next uint64, leaf bool) {
	for i, p := range paths {
		if set&(1<<i) != 0 && depth < len(p) && p[depth] == string(name) {
			next |= 1 << i
			leaf = leaf || depth == len(p)-1
		}
	}
	return next, leaf
}

// alike reports whether name differs from one of names by case alone. A reader that ignores case, as Go's
// own does, would take it for that name.
func alike(name []byte, names ...string) bool {
	for _, n := range names {
		if len(n) == len(name) && n != string(name) && strings.EqualFold(n, string(name)) {
			return true
		}
	}
	return false
}

func alikePath(paths [][]string, set uint64, depth int, name []byte) bool {
	for i, p := range paths {
		if set&(1<<i) != 0 && depth < len(p) && alike(name, p[depth]) {
			return true
		}
	}
	return false
}
