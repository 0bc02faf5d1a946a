// Package authority is the certificate authority inside the agent: it holds the CA key of the trust domain, signs
// X.509-SVIDs, and remembers in a journal what it has signed.
//
// # Why
//
// A lone host needs no server. The authority lives in the agent's process, behind the same methods that a fleet's
// authority will have behind a connection.
//
// # What lies where
//
// Everything is in one folder of mode 0700:
//
//	lock                  held while an authority is open
//	journal.db            public halves, and the serials that are in use (bbolt, behind Store)
//	x509-ca-1.key         the CA key, PKCS#8 PEM, mode 0600
//	x509-ca-1.key.sealed  or instead the same key, sealed
//	x509-ca-1.crt         its certificate
//
// Keys come in classes ([Class]), each with a key and a JWKS use of its own. Private keys are with a [KeyStore]
// and never enter the journal.
//
// # Rotation
//
// No CA lasts, so each is replaced by a next one, which is numbered: x509-ca-2. It goes through three states, each
// step of which is one transaction of the journal:
//
//	(none) ── Prepare ──▶ Prepared ── Activate ──▶ Active ── Activate of the next ──▶ Old ── Retire ──▶ (none)
//
// A CA is in the bundle in all three, and signs in one. So whoever verifies has a CA before anything is signed by it,
// and for as long as anything that it signed is valid. [Authority.Run] takes the steps when they are due; its file says
// when. An operator can take them earlier, and by force when a key is known to others. The key of an old CA is
// destroyed at once, since it signs no more; numbers never come again.
//
// # Crashes
//
// The process may be killed between any two instructions. A key file is written under another name, synced, and
// given its name only then; the journal mentions a key only after that; so what the journal mentions exists.
// A certificate leaves IssueX509 only after its serial is durable in the journal. Many requests share one fsync:
// while the disk is busy with one batch, the next one gathers.
//
// What is already there is never overwritten or made anew. When the parts do not fit together, Open fails with a
// *CorruptError that names the file and what to do: a CA that silently began again would lock out every workload
// of the trust domain.
//
// # Threat
//
// Whoever reads the CA key can be anybody. Files and the folder that others can read or write are refused, and
// key files are opened without following links. Requests are not trusted, although they come from the same
// process: the ID must be of this trust domain and have a path, the key must be strong and not the CA's own, and
// what goes into a certificate is built here and not copied from the request. Against root there is no defence
// but a key that cannot be read (PKCS#11), for which KeyStore is the seam. Against a thief of the disk or of a backup
// there is the sealed KeyStore.
//
// See SPIFFE X509-SVID and RFC 5280; each check names its section.
package authority

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"
)

// Options says what authority to open.
type Options struct {
	Dir         string // absolute, or relative to the working folder; made when it is missing
	Existing    bool   // whether there must be an authority already: then none is made, and its absence is ErrUnreadable
	TrustDomain spiffeid.TrustDomain
	CATTL       time.Duration // life of a CA certificate made now; 0 stands for 1 year
	X509TTL     time.Duration // life of an SVID whose request does not say; 0 stands for 1 h

	Keys   KeyStore         // of the private keys; nil stands for files in Dir
	Events func(Event)      // is told of each step of a rotation, one after the other; must not ask for one; nil stands for nobody
	Clock  func() time.Time // for use by many goroutines; nil stands for time.Now
	Rand   io.Reader        // of serial numbers; nil stands for crypto/rand
	Logger *zap.Logger      // required

	// reached, in tests, is told of each moment of the first run and of rotation at which the process might be killed.
	reached func(step string)
}

// MaxX509TTL is the longest life of an SVID: nothing but its end takes one back.
const MaxX509TTL = 24 * time.Hour

const (
	defaultCATTL   = 365 * 24 * time.Hour
	defaultX509TTL = time.Hour
)

// Authority signs for one trust domain. It is safe for use by many goroutines.
type Authority struct {
	dir     string
	domain  spiffeid.TrustDomain
	x509TTL time.Duration
	clock   func() time.Time
	rand    io.Reader

	o       Options
	log     *zap.Logger
	observe func(Event)
	opened  time.Time
	wake    chan struct{} // Run is to look again; has room for one

	moving sync.Mutex // held during a step of rotation; taken before mu
	closed bool       // guarded by moving

	mu       sync.Mutex           // guards what follows
	cas      []*caGeneration      // the bundle; the slice is never changed, only replaced
	active   *caGeneration        // the one of cas that signs
	newest   uint32               // the highest generation there has been
	sequence uint64               // of the bundle
	changed  chan struct{}        // closed when the bundle changes
	ends     map[uint32]time.Time // by generation: the end of the certificate that lives longest, also of one that is being signed

	lock   *os.File
	store  Store
	serial *ledger

	closing sync.Once
	issued  atomic.Uint64
	latest  atomic.Int64 // when a certificate was last issued, in Unix nanoseconds
}

// Errors that a caller can tell apart with errors.Is.
var (
	// ErrCorrupt: the folder's parts do not fit together. The error is a *CorruptError.
	ErrCorrupt = errors.New("the authority's state is damaged")
	// ErrUnsafe: others can read or write what only the authority may. The error is an *UnsafeError.
	ErrUnsafe = errors.New("the authority's files are not private")
	// ErrInUse: another process has the folder open.
	ErrInUse = errors.New("another process uses this authority")
	// ErrTrustDomain: the folder belongs to another trust domain.
	ErrTrustDomain = errors.New("the authority is of another trust domain")
	// ErrSealed: a key is sealed and cannot be opened here. The error is a *SealedError.
	ErrSealed = errors.New("a key of the authority is sealed")
	// ErrUnreadable: the folder is not there, or the disk fails, or the system refuses access.
	ErrUnreadable = errors.New("the authority's folder cannot be used")
	// ErrExpired: the CA certificate has ended, or has not begun; nothing can be issued.
	ErrExpired = errors.New("the CA certificate is not valid now")
	// ErrRefused: the request is for a certificate that may not exist.
	ErrRefused = errors.New("certificate refused")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the authority is closed")
)

// CorruptError names what is damaged, and what to do. It is ErrCorrupt to errors.Is.
type CorruptError struct {
	Path    string // the file
	Problem string
	Advice  string
	Err     error // the cause, or nil
}

// Error says what is damaged and what to do.
func (e *CorruptError) Error() string {
	cause := ""
	if e.Err != nil {
		cause = ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s: %s%s; %s", e.Path, e.Problem, cause, e.Advice)
}

// Is makes every CorruptError ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap gives the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// restore is the advice for damage that cannot be repaired from what is left.
const restore = "restore the folder from a backup, or move it away to begin with a new CA, which every workload and peer must then learn"

// Open opens the authority in o.Dir, and makes a new one, with a new CA, when there is none.
func Open(ctx context.Context, o Options) (_ *Authority, err error) {
	if o, err = o.complete(); err != nil {
		return nil, err
	}
	defer func() { err = kind(err) }()
	if o.Existing {
		if err := Present(o.Dir); err != nil {
			return nil, err
		}
	}
	lock, err := openDir(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	o.reached("folder")
	if err := sweep(o.Dir); err != nil {
		return nil, err
	}
	store, err := openJournal(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			store.Close()
		}
	}()
	a := &Authority{
		dir: o.Dir, domain: o.TrustDomain, x509TTL: o.X509TTL, clock: o.Clock, rand: o.Rand, o: o, log: o.Logger, observe: o.Events,
		lock: lock, store: store, changed: make(chan struct{}), wake: make(chan struct{}, 1), opened: o.Clock(),
	}
	cas, err := loadCAs(ctx, o, store)
	if err != nil {
		return nil, err
	}
	if len(cas) == 0 {
		first, err := firstCA(ctx, o, store)
		if err != nil {
			return nil, err
		}
		cas = append(cas, first)
	}
	newest, err := newestGeneration(ctx, o, store, cas)
	if err != nil {
		return nil, err
	}
	if a.sequence, err = bundleSequence(ctx, o, store); err != nil {
		return nil, err
	}
	if a.ends, err = liveEnds(ctx, o, store); err != nil {
		return nil, err
	}
	a.install(cas, a.sequence, newest)
	a.clear()
	a.serial = newLedger(store, o.Clock, o.Logger)
	return a, nil
}

// Present says whether there is an authority in a folder, without touching it; its absence is ErrUnreadable.
func Present(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, journalFile)); err != nil {
		return fmt.Errorf("authority: there was one, and now: %w: %w; mount its disk, or restore the folder from a backup", ErrUnreadable, err)
	}
	return nil
}

func (o Options) complete() (Options, error) {
	switch {
	case o.Dir == "":
		return o, errors.New("authority: no folder given")
	case o.TrustDomain.IsZero():
		return o, errors.New("authority: no trust domain given")
	case o.Logger == nil:
		return o, errors.New("authority: no logger given")
	case o.CATTL < 0 || o.X509TTL < 0:
		return o, errors.New("authority: a lifetime is negative")
	}
	if o.CATTL == 0 {
		o.CATTL = defaultCATTL
	}
	if o.X509TTL == 0 {
		o.X509TTL = min(defaultX509TTL, o.CATTL)
	}
	if o.X509TTL > MaxX509TTL || o.X509TTL > o.CATTL {
		return o, fmt.Errorf("authority: SVIDs of %s would outlive the CA's %s or the bound of %s", o.X509TTL, o.CATTL, MaxX509TTL)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.reached == nil {
		o.reached = func(string) {}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, fmt.Errorf("authority: %w", err)
	}
	o.Dir = dir
	if o.Keys == nil {
		o.Keys = NewFileKeys(dir)
	}
	return o, nil
}

// Close lets requests under way end, refuses new ones with ErrClosed, and releases the folder.
func (a *Authority) Close() error {
	var err error
	a.closing.Do(func() {
		a.moving.Lock()
		a.closed = true
		a.moving.Unlock()
		a.wakeRun()
		a.serial.close()
		err = errors.Join(a.store.Close(), a.lock.Close())
	})
	return err
}

// TrustDomain is the trust domain that the authority signs for.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.domain }

// Status is what an operator wants to know of an authority.
type Status struct {
	CANotBefore, CANotAfter time.Time // of the CA that signs
	CASubjectKeyID          []byte
	Rotation                Rotation
	Issued                  uint64    // certificates since Open
	LastIssued              time.Time // zero when there was none
}

// Status reports on the authority.
func (a *Authority) Status() Status {
	s := Status{Rotation: a.Rotation(), Issued: a.issued.Load()}
	for _, g := range s.Rotation.Generations {
		if g.State == Active {
			s.CANotBefore, s.CANotAfter, s.CASubjectKeyID = g.NotBefore, g.NotAfter, g.SubjectKeyID
		}
	}
	if at := a.latest.Load(); at != 0 {
		s.LastIssued = time.Unix(0, at)
	}
	return s
}
