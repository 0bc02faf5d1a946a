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
//	lock           held while an authority is open
//	journal.db     public halves, and the serials that are in use (bbolt, behind Store)
//	x509-ca-1.key  the CA key, PKCS#8 PEM, mode 0600
//	x509-ca-1.crt  its certificate
//
// Keys come in classes ([Class]), each with a key and a JWKS use of its own. Private keys are with a [KeyStore]
// and never enter the journal.
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
// but a key that cannot be read (TPM 2.0, PKCS#11), for which KeyStore is the seam.
//
// See SPIFFE X509-SVID and RFC 5280; each check names its section.
package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
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
	TrustDomain spiffeid.TrustDomain
	CATTL       time.Duration // life of a CA certificate made now; 0 stands for 1 year
	X509TTL     time.Duration // life of an SVID whose request does not say; 0 stands for 1 h

	Keys   KeyStore         // of the private keys; nil stands for files in Dir
	Clock  func() time.Time // for use by many goroutines; nil stands for time.Now
	Rand   io.Reader        // of serial numbers; nil stands for crypto/rand
	Logger *zap.Logger      // required

	// reached, in tests, is told of each step of the first run, after which the process might be killed.
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

	ca       *x509.Certificate
	key      crypto.Signer
	sequence uint64 // of the bundle
	changed  chan struct{}

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
		dir: o.Dir, domain: o.TrustDomain, x509TTL: o.X509TTL, clock: o.Clock, rand: o.Rand,
		lock: lock, store: store, changed: make(chan struct{}),
	}
	if a.ca, a.key, err = loadCA(ctx, o, store); err != nil {
		return nil, err
	}
	if a.sequence, err = bundleSequence(ctx, o, store); err != nil {
		return nil, err
	}
	if left := a.ca.NotAfter.Sub(o.Clock()); left < 30*24*time.Hour && left < a.ca.NotAfter.Sub(a.ca.NotBefore)/6 {
		o.Logger.Warn("the CA certificate ends soon; no SVID outlives it", zap.Time("not_after", a.ca.NotAfter))
	}
	a.serial = newLedger(store, o.Clock, o.Logger)
	return a, nil
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
		a.serial.close()
		err = errors.Join(a.store.Close(), a.lock.Close())
	})
	return err
}

// TrustDomain is the trust domain that the authority signs for.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.domain }

// Status is what an operator wants to know of an authority.
type Status struct {
	CANotBefore, CANotAfter time.Time
	CASubjectKeyID          []byte
	Issued                  uint64    // certificates since Open
	LastIssued              time.Time // zero when there was none
}

// Status reports on the authority.
func (a *Authority) Status() Status {
	s := Status{CANotBefore: a.ca.NotBefore, CANotAfter: a.ca.NotAfter, CASubjectKeyID: a.ca.SubjectKeyId, Issued: a.issued.Load()}
	if at := a.latest.Load(); at != 0 {
		s.LastIssued = time.Unix(0, at)
	}
	return s
}
