package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// Key signs checkpoints, and checks those that were signed before. A Signer over a TPM or PKCS#11 token fits.
type Key struct {
	Signer   note.Signer
	Verifier note.Verifier

	public string // the verifier's key as text, where it is the log's own
}

// PublicFile is where the public half of the log's own key is written, for Verify: beside the log's folder, as the
// key itself is by default (`.key`), so that the folder can be handed on without either.
func PublicFile(dir string) string { return filepath.Clean(dir) + ".pub" }

// LoadVerifier reads the public half of a log's key. For a proof that owes nothing to the log's host, keep a copy of
// the file elsewhere.
func LoadVerifier(path string) (note.Verifier, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, path, err)
	}
	return v, nil
}

// loadKey reads the key in path. A missing file is made only when create allows it: with a log of its own already
// there, a new key would make all of its checkpoints worthless.
func loadKey(path, name string, create bool) (*Key, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
		if err := createKey(path, name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s is missing, and the log has been signed with it; restore it, or move the log aside to begin a new one", ErrKey, path)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrKey, path)
	default:
		if err := checkAccess(path, info, 0o600); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	secret := strings.TrimSpace(string(b))
	s, err := note.NewSigner(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: not a signed note's key", ErrKey, path) // its content goes into no message
	}
	public, err := publicHalf(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: not a signed note's key", ErrKey, path)
	}
	v, err := note.NewVerifier(public)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: not a signed note's key", ErrKey, path)
	}
	return &Key{Signer: s, Verifier: v, public: public}, nil
}

// publicHalf gives the verifier's form of a signer's key, `PRIVATE+KEY+NAME+HASH+BASE64(algorithm, seed)`.
func publicHalf(secret string) (string, error) {
	fields := strings.SplitN(secret, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(fields[len(fields)-1])
	if err != nil || len(fields) != 5 || len(raw) != 1+ed25519.SeedSize {
		return "", errors.New("malformed key")
	}
	return note.NewEd25519VerifierKey(fields[2], ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey))
}

// createKey makes a new Ed25519 key, durable under its name before anything is signed with it.
func createKey(path, name string) error {
	secret, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o600); err != nil { // an abandoned file of the same name keeps its own mode
		return err
	}
	if _, err := f.WriteString(secret + "\n"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return Host{}.SyncDir(filepath.Dir(path))
}

// writePublic keeps the public half beside the log, for whoever verifies.
func writePublic(path, public string) error {
	if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == public {
		return nil
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(public + "\n"); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
