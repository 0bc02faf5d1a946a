package seal

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Keep holds the SVIDs of an agent on disk, sealed, for as long as they are valid, and the bundle that vouches for them.
// An agent that starts while its authority cannot be opened serves what it has kept, so that care goes on; SVIDs that
// have ended are never served. Each SVID is in a file of its own, which the next one for the same use replaces.
//
// A kept SVID is no less secret than the process's memory that it came from, and no more trusted than its checks: on
// reading, each is verified with the kept bundle, and what does not open, fit or verify is dropped, with the reason.
// Who can write into the folder can put back an older bundle together with older SVIDs; they end as they would have.
type Keep struct {
	o  KeepOptions
	mu sync.Mutex // guards what follows
	// bundle is the one that SVIDs in the folder are believed by; nil when none is kept.
	bundle *x509bundle.Bundle
	// files is the end of each SVID by the name of its file; a zero end is a file that did not open, and may yet.
	files map[string]time.Time
}

// KeepOptions says where SVIDs are kept. All but Clock must be given.
type KeepOptions struct {
	Dir         string // made with mode 0700 when it is missing, and used for nothing else
	Box         *Box
	TrustDomain spiffeid.TrustDomain
	Clock       func() time.Time // nil stands for time.Now
}

// Slot is the use that an SVID is for: everything of an entry that the SVID depends on.
type Slot struct {
	Entry    string
	ID       spiffeid.ID
	DNSNames []string
	TTL      time.Duration // as the entry says; 0 where it does not
	Lent     bool          // for the proxy, on the workload's behalf
}

// SVID is an X.509-SVID and its use.
type SVID struct {
	Slot
	Certificates []*x509.Certificate // leaf first
	PrivateKey   crypto.Signer
}

// Kept is what a Keep had when it was opened.
type Kept struct {
	SVIDs   []SVID             // valid, and verified with the bundle
	Bundle  *x509bundle.Bundle // nil when none was kept
	Dropped []Dropped
}

// Find is the SVID for a use, or nil.
func (k *Kept) Find(s Slot) *SVID {
	i := slices.IndexFunc(k.SVIDs, func(have SVID) bool { return have.file() == s.file() })
	if i < 0 {
		return nil
	}
	return &k.SVIDs[i]
}

// Dropped is a file that was not believed.
type Dropped struct {
	File string // its name in the folder
	Err  error  // why; ErrExpired for what has just grown old
}

// Errors that a caller can tell apart with errors.Is.
var (
	// ErrExpired: a kept SVID is not valid now.
	ErrExpired = errors.New("not valid now")
	// ErrFull: no more SVIDs can be kept.
	ErrFull = errors.New("as many SVIDs are kept as can be")
)

const (
	// mostSVIDs and mostRecord bound the folder, to about 64 MiB in usual blocks of 4 KiB, and 256 MiB at the most.
	mostSVIDs  = 4096
	mostRecord = 64 << 10
	svidEnding = ".svid"
	bundleFile = "bundle"
	// foreignTime is how long a file that another key sealed is left, for a start with the right one: no SVID lives
	// longer.
	foreignTime = 24 * time.Hour
)

// file names the file of a use, without telling it.
func (s Slot) file() string {
	text, err := json.Marshal([]any{s.Entry, s.ID.String(), slices.Sorted(slices.Values(s.DNSNames)), s.TTL, s.Lent})
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16]) + svidEnding
}

// OpenKeep opens the folder and says what is in it. What is not believed, or not valid any more, is removed; what
// another key sealed, or the disk does not give, is left for a day.
func OpenKeep(o KeepOptions) (*Keep, *Kept, error) {
	k, kept, err := ResumeKeep(o)
	if err != nil {
		return nil, nil, err
	}
	all, err := k.sweep(context.Background(), func(s *SVID) { kept.SVIDs = append(kept.SVIDs, *s) })
	kept.Dropped = append(kept.Dropped, all...)
	return k, kept, err
}

// ResumeKeep opens the folder and reads no SVID, of which there may be thousands: [Keep.Find] reads one, and [Keep.Sweep]
// looks after the rest.
func ResumeKeep(o KeepOptions) (*Keep, *Kept, error) {
	if o.Dir == "" || o.Box == nil || o.TrustDomain.IsZero() {
		return nil, nil, errors.New("seal: keep: folder, box and trust domain must be given")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if err := privateDir(o.Dir); err != nil {
		return nil, nil, err
	}
	k, kept := &Keep{o: o, files: make(map[string]time.Time)}, new(Kept)
	var err error
	switch kept.Bundle, err = k.loadBundle(); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		kept.Dropped = append(kept.Dropped, k.drop(bundleFile, err))
	}
	k.bundle = kept.Bundle
	return k, kept, nil
}

// Sweep removes what is not believed, or not valid any more, as OpenKeep does, and says what that was. SVIDs can be saved
// and found meanwhile.
func (k *Keep) Sweep(ctx context.Context) ([]Dropped, error) {
	return k.sweep(ctx, func(*SVID) {})
}

func (k *Keep) sweep(ctx context.Context, found func(*SVID)) (dropped []Dropped, err error) {
	entries, err := os.ReadDir(k.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("seal: keep: %w", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return dropped, nil
		}
		svid, gone := k.look(e.Name())
		if svid != nil {
			found(svid)
		}
		if gone != nil {
			dropped = append(dropped, *gone)
		}
	}
	return dropped, nil
}

// look reads a file that nobody has looked at, and drops what it does not believe.
func (k *Keep) look(name string) (*SVID, *Dropped) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, known := k.files[name]; known {
		return nil, nil
	}
	err := error(ErrFull)
	switch {
	case strings.HasPrefix(name, tempPrefix): // nobody writes now, so nobody will finish it
		_ = os.Remove(filepath.Join(k.o.Dir, name))
		return nil, nil
	case !strings.HasSuffix(name, svidEnding):
		return nil, nil
	case len(k.files) < mostSVIDs:
		var svid *SVID
		if svid, err = k.load(name, k.bundle); err == nil {
			k.files[name] = svid.Certificates[0].NotAfter
			return svid, nil
		}
	}
	gone := k.drop(name, err)
	return nil, &gone
}

// drop removes a file that is not believed, unless that may change. The caller holds mu, or is alone.
func (k *Keep) drop(name string, err error) Dropped {
	if !k.spared(name, err) {
		_ = os.Remove(filepath.Join(k.o.Dir, name))
	}
	return Dropped{name, err}
}

// Find reads the SVID for a use: nil when none is kept, and an error when the one that is there is not to be believed, or
// not valid any more.
func (k *Keep) Find(s Slot) (*SVID, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	svid, err := k.load(s.file(), k.bundle)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return svid, nil
}

// spared reports whether a file that is not believed stays where it is, and counts it.
func (k *Keep) spared(name string, err error) bool {
	var system *fs.PathError // the disk's fault, which may pass
	if !errors.Is(err, ErrForeign) && !errors.Is(err, errNoBundle) && !errors.As(err, &system) {
		return false
	}
	info, statErr := os.Lstat(filepath.Join(k.o.Dir, name))
	if statErr != nil || k.o.Clock().Sub(info.ModTime()) > foreignTime {
		return false
	}
	if name != bundleFile {
		k.files[name] = time.Time{}
	}
	return true
}

// Save keeps an SVID in place of the one before for the same use. The SVID is served whether or not it can be kept, so
// call this after it was handed out.
func (k *Keep) Save(s SVID) error {
	if len(s.Certificates) == 0 || s.PrivateKey == nil {
		return errors.New("seal: keep: no certificate or no key")
	}
	text, err := encodeSVID(s)
	if err != nil {
		return err
	}
	name := s.file()
	sealed, err := k.o.Box.Seal(keptPurpose(name), text)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.prune()
	if _, there := k.files[name]; !there && len(k.files) >= mostSVIDs {
		return fmt.Errorf("seal: keep: %w: %d", ErrFull, mostSVIDs)
	}
	if err := write(filepath.Join(k.o.Dir, name), sealed, true); err != nil {
		return err
	}
	k.files[name] = s.Certificates[0].NotAfter
	return nil
}

// Forget removes what is kept for a use, as when its entry is gone. It is no error when there is nothing.
func (k *Keep) Forget(s Slot) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.files, s.file())
	if err := os.Remove(filepath.Join(k.o.Dir, s.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("seal: keep: %w", err)
	}
	return nil
}

// SaveBundle keeps the bundle of the trust domain in place of the one before. An SVID whose CA is not in it is not
// believed when the folder is opened the next time.
func (k *Keep) SaveBundle(b *x509bundle.Bundle) error {
	if b == nil || b.TrustDomain() != k.o.TrustDomain {
		return errors.New("seal: keep: the bundle is of another trust domain")
	}
	text, err := encodeBundle(b)
	if err != nil {
		return err
	}
	sealed, err := k.o.Box.Seal(keptPurpose(bundleFile), text)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := write(filepath.Join(k.o.Dir, bundleFile), sealed, true); err != nil {
		return err
	}
	k.bundle = b.Clone()
	return nil
}

// prune removes SVIDs that have ended. The caller holds mu.
func (k *Keep) prune() {
	now := k.o.Clock()
	for name, end := range k.files {
		if !end.IsZero() && !now.Before(end) {
			if err := os.Remove(filepath.Join(k.o.Dir, name)); err == nil || errors.Is(err, fs.ErrNotExist) {
				delete(k.files, name)
			}
		}
	}
}

// keptPurpose binds what is sealed to its file, so that one cannot be put in another's place.
func keptPurpose(file string) string { return "kept " + file }

// read opens one file of the folder.
func (k *Keep) read(name string) ([]byte, error) {
	sealed, err := readPrivate(filepath.Join(k.o.Dir, name), mostRecord+int64(around))
	if err != nil {
		return nil, err
	}
	return k.o.Box.Open(keptPurpose(name), sealed)
}

func (k *Keep) loadBundle() (*x509bundle.Bundle, error) {
	text, err := k.read(bundleFile)
	if err != nil {
		return nil, err
	}
	return decodeBundle(text, k.o.TrustDomain)
}

func (k *Keep) load(name string, bundle *x509bundle.Bundle) (*SVID, error) {
	text, err := k.read(name)
	if err != nil {
		return nil, err
	}
	s, err := decodeSVID(text)
	if err != nil {
		return nil, err
	}
	if s.file() != name {
		return nil, fmt.Errorf("%w: it is for another use", ErrTampered)
	}
	return s, s.verify(bundle, k.o.TrustDomain, k.o.Clock())
}
