package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

const checkpointSchema = "ward.audit-checkpoint/1"

// checkpoint is one line of the checkpoints: a signed tree head (C2SP tlog-checkpoint) as its note, so that
// `jq -r 'objects.note'` gives what any witness or verifier of such logs reads.
type checkpoint struct {
	Schema string    `json:"schema"`
	Time   time.Time `json:"time"` // by the host's clock; not signed
	Note   string    `json:"note"`

	tlog.Tree `json:"-"` // what the note says
}

// signCheckpoint makes the line for tree.
func signCheckpoint(key *Key, origin string, tree tlog.Tree, at time.Time) ([]byte, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n", origin, tree.N, tree.Hash)
	signed, err := note.Sign(&note.Note{Text: text}, key.Signer)
	if err != nil {
		return nil, fmt.Errorf("audit: signing a checkpoint: %w", err)
	}
	b := append([]byte(`{"schema":"`+checkpointSchema+`","time":"`), at.UTC().Format(time.RFC3339Nano)...)
	b = appendString(append(b, `","note":`...), string(signed))
	b = append(b, '}')
	return appendFrame(nil, b, frameSum(b), tree.N, tree.N), nil
}

// errUnknownKey: a checkpoint is signed, but by none of the keys at hand.
var errUnknownKey = errors.New("the checkpoint is not signed by a known key")

// parseCheckpoint reads one line and checks its signature.
func parseCheckpoint(f frame, origin string, known note.Verifiers) (checkpoint, error) {
	var c checkpoint
	if err := jsonv2.Unmarshal(f.json, &c); err != nil || c.Schema != checkpointSchema {
		return c, fmt.Errorf("the line is not a checkpoint of %s", checkpointSchema)
	}
	n, err := note.Open([]byte(c.Note), known)
	if err != nil {
		var unknown *note.UnverifiedNoteError
		if errors.As(err, &unknown) {
			return c, errUnknownKey
		}
		return c, fmt.Errorf("the checkpoint's signature: %w", err)
	}
	text := strings.Split(n.Text, "\n") // C2SP tlog-checkpoint: origin, size, root; nothing more is written here
	if len(text) != 4 || text[3] != "" {
		return c, errors.New("the checkpoint's note is malformed")
	}
	if text[0] != origin {
		return c, fmt.Errorf("the checkpoint is of the log %q, this is %q", text[0], origin)
	}
	size, err := strconv.ParseInt(text[1], 10, 64)
	if err != nil || strconv.FormatInt(size, 10) != text[1] || size != f.index || size != f.synced {
		return c, errors.New("the checkpoint's size is malformed")
	}
	root, err := tlog.ParseHash(text[2])
	if err != nil {
		return c, errors.New("the checkpoint's root is malformed")
	}
	c.Tree = tlog.Tree{N: size, Hash: root}
	return c, nil
}

// lastCheckpoint reads the newest checkpoint, and where a torn line after it begins (the file's size when there is
// none). ok is false when the file is missing or holds none yet.
func lastCheckpoint(dir, origin string, known note.Verifiers) (c checkpoint, ok bool, torn int64, err error) {
	path := filepath.Join(dir, checkpointsName)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return c, false, 0, nil
	}
	if err != nil {
		return c, false, 0, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return c, false, 0, fmt.Errorf("audit: %w", err)
	}
	tail, from, err := readTail(f, info.Size(), 64<<10)
	if err != nil {
		return c, false, 0, err
	}
	torn = from
	var last frame
	for rest := tail; ; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			break
		}
		if next, bad := parseFrame(line); bad == nil {
			if begin := from + int64(len(tail)-len(rest)); torn != begin {
				return c, false, 0, corrupt(path, last.index, torn, "a checkpoint's checksum is wrong")
			}
			last, torn, ok = next, torn+int64(len(line)+1), true
		}
		rest = after
	}
	if !ok {
		if from > 0 {
			return c, false, 0, corrupt(path, 0, from, "its end holds no checkpoint")
		}
		return c, false, 0, nil
	}
	if c, err = parseCheckpoint(last, origin, known); err != nil {
		if errors.Is(err, errUnknownKey) {
			return c, false, 0, fmt.Errorf("%w: %s: its last checkpoint was signed by another key; restore that key, or move the log aside to begin a new one", ErrKey, path)
		}
		return c, false, 0, corrupt(path, last.index, torn, "%v", err)
	}
	return c, true, torn, nil
}
