package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of a policy set. A clinic's set is a few dozen policies of half a kilobyte.
const (
	maxFile  = 256 << 10 // bytes
	maxTotal = 4 << 20   // bytes
)

// File is one file of a policy set.
type File struct {
	Name    string // without its folder
	Content []byte
}

const extension = ".cedar"

// Load reads and checks the policies in all *.cedar files of dir, which must not be writable by anyone but root and
// the user of this process. Files whose names begin with a dot, other files and folders are passed over. Everything
// that is wrong is reported at once, as Problems.
//
// A folder without a policy is an error: to refuse every call is a decision that somebody must have written down.
func Load(dir string) (*Set, error) {
	files, problems := readFolder(dir)
	return parse(files, dir, problems)
}

// readFolder reads the policy files in dir. Every check is made on what was opened, so that it holds for what is read.
func readFolder(dir string) (files []File, problems Problems) {
	complain := func(name, text, advice string) {
		problems = append(problems, &Problem{File: filepath.Join(dir, name), Text: text, Advice: advice})
	}
	folder, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		complain("", "the policy folder cannot be read: "+reason(err), "make it, readable for this user")
		return nil, problems
	}
	defer folder.Close()
	if text := othersWrite(folder); text != "" {
		complain("", text, "chown it to root and chmod go-w it")
	}
	names, err := folder.Readdirnames(-1)
	if err != nil {
		complain("", "the policy folder cannot be read: "+reason(err), "make it readable for this user")
		return nil, problems
	}
	slices.Sort(names)
	total := 0
	for _, name := range names {
		if strings.HasPrefix(name, ".") || !strings.EqualFold(filepath.Ext(name), extension) {
			continue
		}
		if filepath.Ext(name) != extension {
			complain(name, "this looks like a policy file but would be passed over", "rename it to end with "+extension+", or move it away")
			continue
		}
		content, text, advice := readPolicyFile(folder, name)
		if text != "" {
			complain(name, text, advice)
			continue
		}
		if total += len(content); total > maxTotal {
			complain(name, fmt.Sprintf("the policy files are larger than %d MiB together", maxTotal>>20), "remove what is not needed")
			return nil, problems
		}
		files = append(files, File{Name: name, Content: content})
	}
	return files, problems
}

// readPolicyFile gives the content, or what is wrong and what to do.
func readPolicyFile(folder *os.File, name string) (content []byte, text, advice string) {
	// O_NONBLOCK: a named pipe must not hold up the start.
	fd, err := unix.Openat(int(folder.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ELOOP {
		return nil, "this is a symbolic link, and whoever owns its target would write policy", "put the file itself here"
	}
	if err != nil {
		return nil, "the file cannot be read: " + reason(err), "make it readable for this user"
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, "the file cannot be read: " + reason(err), "make it readable for this user"
	}
	if !info.Mode().IsRegular() {
		return nil, "this is no regular file", "put the file itself here"
	}
	if text := othersWrite(f); text != "" {
		return nil, text, "chown it to root and chmod go-w it"
	}
	content, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, "the file cannot be read: " + reason(err), "make it readable for this user"
	}
	return content, "", ""
}

// othersWrite says who but root and this process's user could write f, "" when nobody could.
func othersWrite(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return "its owner cannot be read: " + reason(err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return "its owner is not known"
	case owner.Uid != 0 && int(owner.Uid) != os.Geteuid():
		return fmt.Sprintf("uid %d owns it and could write policy", owner.Uid)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Sprintf("its mode %04o lets others write policy", info.Mode().Perm())
	}
	return ""
}

// reason is the cause of a file error without the path, which the problem names already.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// Parse checks the policies in files, as Load does; the files' names stand for their places in what is reported. It is
// for sets that were kept or embedded.
func Parse(files []File) (*Set, error) { return parse(files, "", nil) }

// digest is the SHA-256 over the names and contents of files, which are sorted by name. Lengths go before, so that no
// two sets have the same input.
func digest(files []File) string {
	h := sha256.New()
	for _, f := range files {
		for _, part := range [...][]byte{[]byte(f.Name), f.Content} {
			var n [8]byte
			binary.BigEndian.PutUint64(n[:], uint64(len(part)))
			h.Write(n[:])
			h.Write(part)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
