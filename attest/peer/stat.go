package peer

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// stat is what is used of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	state  byte
	memory uint64 // field 23, vsize: 0 once the process has no memory
	layout layout
}

var errStat = errors.New("/proc/PID/stat is not as proc_pid_stat(5) says")

// parseStat parses one line. The process chooses its name, the second field, which may hold spaces and
// brackets: so the fields are counted from the last closing bracket.
func parseStat(line []byte) (stat, error) {
	end := bytes.LastIndexByte(line, ')')
	if end < 0 {
		return stat{}, errStat
	}
	rest := bytes.TrimPrefix(line[end+1:], []byte(" "))
	var s stat
	field := 3
	for len(rest) > 0 && field <= 47 {
		word, after, _ := bytes.Cut(rest, []byte(" "))
		rest = after
		var to *uint64
		switch field {
		case 3:
			if len(word) != 1 || !letter(word[0]) {
				return stat{}, errStat
			}
			s.state = word[0]
		case 22:
			to = &s.layout.started
		case 23:
			to = &s.memory
		case 26:
			to = &s.layout.startCode
		case 27:
			to = &s.layout.endCode
		case 28:
			to = &s.layout.startStack
		case 45:
			to = &s.layout.startData
		case 46:
			to = &s.layout.endData
		case 47:
			to = &s.layout.startHeap
		}
		if to != nil {
			n, ok := decimal(word)
			if !ok {
				return stat{}, errStat
			}
			*to = n
		}
		field++
	}
	if field <= 47 {
		return stat{}, errStat
	}
	return s, nil
}

func letter(c byte) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }

// decimal parses an unsigned decimal number without allocating.
func decimal(word []byte) (uint64, bool) {
	if len(word) == 0 || len(word) > 20 {
		return 0, false
	}
	var n uint64
	for _, c := range word {
		if c < '0' || c > '9' {
			return 0, false
		}
		next := n*10 + uint64(c-'0')
		if n > (1<<64-1)/10 || next < n*10 {
			return 0, false
		}
		n = next
	}
	return n, true
}

// status is what is used of /proc/PID/status (proc_pid_status(5)).
type status struct {
	uid, gid uint32 // effective
	groups   []uint32
}

// parseStatus parses the whole file. The kernel escapes the process's name, so no line can be made up.
func parseStatus(file []byte) (status, error) {
	var s status
	var uid, gid, groups bool
	for line := range bytes.Lines(file) {
		key, value, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(":"))
		if !found {
			continue
		}
		var err error
		switch string(key) {
		case "Uid":
			uid = true
			s.uid, err = effective(value)
		case "Gid":
			gid = true
			s.gid, err = effective(value)
		case "Groups":
			groups = true
			s.groups, err = ids(value)
		}
		if err != nil {
			return status{}, fmt.Errorf("/proc/PID/status: %s: %w", key, err)
		}
	}
	if !uid || !gid || !groups {
		return status{}, errors.New("/proc/PID/status: Uid, Gid or Groups is missing")
	}
	return s, nil
}

// effective is the second of the real, effective, saved and file system ids.
func effective(value []byte) (uint32, error) {
	all, err := ids(value)
	if err != nil {
		return 0, err
	}
	if len(all) != 4 {
		return 0, fmt.Errorf("%d ids instead of 4", len(all))
	}
	return all[1], nil
}

func ids(value []byte) ([]uint32, error) {
	var out []uint32
	for word := range bytes.FieldsSeq(value) {
		n, err := strconv.ParseUint(string(word), 10, 32)
		if err != nil {
			return nil, err
		}
		out = append(out, uint32(n))
	}
	return out, nil
}
