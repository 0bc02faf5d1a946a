package authority

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// journalFile is the journal's name in the folder.
const journalFile = "journal.db"

// format is the version of the journal's layout.
const format = "1"

// boltStore is a Store in one bbolt file.
type boltStore struct{ db *bbolt.DB }

// NewBoltStore makes an empty journal at path, which must not exist, for a trust domain. It appears under its name
// whole or not at all: bbolt itself writes a new file in steps, between which a crash would leave a torso.
func NewBoltStore(path string, td spiffeid.TrustDomain) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return fmt.Errorf("authority: journal: %w", err)
	}
	defer os.Remove(temp.Name())
	if err := temp.Close(); err != nil {
		return fmt.Errorf("authority: journal: %w", err)
	}
	db, err := bbolt.Open(temp.Name(), 0o600, boltOptions())
	if err != nil {
		return fmt.Errorf("authority: journal: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range Buckets() {
			if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
				return err
			}
		}
		meta := tx.Bucket([]byte(BucketMeta))
		return errors.Join(
			meta.Put([]byte("format"), []byte(format)),
			meta.Put([]byte("trust_domain"), []byte(td.Name())))
	})
	if err := errors.Join(err, db.Sync(), db.Close()); err != nil {
		return fmt.Errorf("authority: journal: %w", err)
	}
	return publish(temp.Name(), path)
}

func boltOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoStatistics: true}
}

// OpenBoltStore opens the journal at path. A file that is damaged is a *CorruptError, and is left as it is.
func OpenBoltStore(path string) (_ Store, err error) {
	damaged := func(cause error) error {
		return &CorruptError{Path: path, Problem: "the journal cannot be read", Advice: restore, Err: cause}
	}
	switch err := inspectFile(path); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("authority: journal: %w", err)
	case err != nil:
		return nil, damaged(err)
	}
	// bbolt panics on pages that contradict one another, and faults where its mapping is longer than the file.
	// Whatever of that is left must end in an error that an operator can act on.
	fault := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(fault)
	var file *os.File
	options := boltOptions()
	options.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE|syscall.O_NOFOLLOW, mode)
		file = f
		return f, err
	}
	defer func() {
		if p := recover(); p != nil {
			// The state of the database is unknown, and closing it could block. Its mapping stays, and with it
			// the lock on its file, unless that is released by name.
			unix.Flock(int(file.Fd()), unix.LOCK_UN)
			file.Close()
			err = damaged(fmt.Errorf("%v", p))
		}
	}()
	db, err := bbolt.Open(path, 0o600, options)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, bolterrors.ErrTimeout) {
			return nil, fmt.Errorf("authority: journal %s: %w", path, err)
		}
		return nil, damaged(err)
	}
	if err := inspect(db); err != nil {
		db.Close()
		return nil, damaged(err)
	}
	return &boltStore{db}, nil
}

// inspectFile checks the structure of the file before bbolt opens it.
func inspectFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return inspectPages(f, info.Size())
}

// inspect reads the whole journal once: first every record, in this goroutine, where a fault can be caught, and
// then bbolt's own check of its pages.
func inspect(db *bbolt.DB) error {
	return db.View(func(tx *bbolt.Tx) error {
		for _, name := range Buckets() {
			b := tx.Bucket([]byte(name))
			if b == nil {
				return fmt.Errorf("the bucket %s is missing", name)
			}
			sum := byte(0)
			err := b.ForEach(func(k, v []byte) error {
				if v == nil {
					return fmt.Errorf("the bucket %s holds a bucket", name)
				}
				for _, c := range v {
					sum ^= c // touch every byte
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = err
			}
		}
		return first
	})
}

// Get implements Store.
func (s *boltStore) Get(ctx context.Context, b Bucket, key []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var value []byte
	err := s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket([]byte(b)).Get(key)
		if v == nil {
			return ErrNotFound
		}
		value = bytes.Clone(v)
		return nil
	})
	return value, err
}

// Range implements Store.
func (s *boltStore) Range(ctx context.Context, b Bucket, from, to []byte, f func(key, value []byte) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte(b)).Cursor()
		for k, v := c.Seek(from); k != nil && (to == nil || bytes.Compare(k, to) < 0); k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(k, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// Commit implements Store. bbolt calls fdatasync before Update returns.
func (s *boltStore) Commit(ctx context.Context, t Tx) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.check(); err != nil {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range t.If {
			if v := tx.Bucket([]byte(c.Bucket)).Get(c.Key); (v == nil) != (c.Value == nil) || !bytes.Equal(v, c.Value) {
				return ErrConflict
			}
		}
		for _, r := range t.Delete {
			if err := tx.Bucket([]byte(r.Bucket)).Delete(r.Key); err != nil {
				return err
			}
		}
		for _, r := range t.Put {
			if err := tx.Bucket([]byte(r.Bucket)).Put(r.Key, r.Value); err != nil {
				return err
			}
		}
		return nil
	})
}

// check refuses transactions that one store would do and another would not.
func (t Tx) check() error {
	if n := len(t.If) + len(t.Put) + len(t.Delete); n > MaxWrites {
		return fmt.Errorf("authority: a transaction of %d parts; %d are allowed", n, MaxWrites)
	}
	type place struct {
		bucket Bucket
		key    string
	}
	written := make(map[place]bool, len(t.Put)+len(t.Delete))
	for i, r := range append(t.Put[:len(t.Put):len(t.Put)], t.Delete...) {
		at := place{r.Bucket, string(r.Key)}
		switch {
		case len(r.Key) == 0 || i < len(t.Put) && len(r.Value) == 0:
			return errors.New("authority: an empty key or value")
		case written[at]:
			return errors.New("authority: two writes to one key in a transaction")
		}
		written[at] = true
	}
	return nil
}

// Close implements Store.
func (s *boltStore) Close() error { return s.db.Close() }

// openJournal opens the journal in the folder, and makes it on the first run.
func openJournal(o Options) (Store, error) {
	path := filepath.Join(o.Dir, journalFile)
	switch _, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		// The journal comes first. A key without one is an authority that has lost it.
		if lost, err := firstKeyFile(o.Dir); err != nil {
			return nil, err
		} else if lost != "" {
			return nil, &CorruptError{Path: path, Problem: "the journal is missing, and " + filepath.Base(lost) + " is there", Advice: restore}
		}
		if err := NewBoltStore(path, o.TrustDomain); err != nil {
			return nil, err
		}
		o.reached("journal")
	case err != nil:
		return nil, fmt.Errorf("authority: journal: %w", err)
	default:
		if err := private(path, 0o600); err != nil {
			return nil, err
		}
	}
	store, err := OpenBoltStore(path)
	if err != nil {
		return nil, err
	}
	if err := checkMeta(store, path, o.TrustDomain); err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

func checkMeta(s Store, path string, td spiffeid.TrustDomain) error {
	meta := make(map[string]string, 2)
	for _, key := range []string{"format", "trust_domain"} {
		v, err := s.Get(context.Background(), BucketMeta, []byte(key))
		if err != nil {
			return &CorruptError{Path: path, Problem: "the journal does not say its " + key, Advice: restore, Err: err}
		}
		meta[key] = string(v)
	}
	if meta["format"] != format {
		return fmt.Errorf("authority: %s has format %q, which this version of Ward does not know; use the version that wrote it", path, meta["format"])
	}
	if meta["trust_domain"] != td.Name() {
		return fmt.Errorf("%w: %s is for %s, and config says %s; correct trust_domain, or choose another folder by authority.dir",
			ErrTrustDomain, filepath.Dir(path), meta["trust_domain"], td.Name())
	}
	return nil
}

// encode writes a journal value.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of this package
	}
	return b
}
