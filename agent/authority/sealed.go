package authority

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// sealedEnding ends the names of sealed key files.
const sealedEnding = ".key.sealed"

func sealedPath(dir string, name KeyName) string {
	return filepath.Join(dir, name.String()+sealedEnding)
}

// Box encrypts what is to lie on a disk, for a purpose, and opens it again for the same purpose only. Implemented by
// package seal over a TPM 2.0, and over a credential of the service manager.
type Box interface {
	Seal(purpose string, plain []byte) ([]byte, error)
	Open(purpose string, sealed []byte) ([]byte, error)
}

// SealedError names a sealed key that cannot be opened, and what to do. It is ErrSealed to errors.Is.
type SealedError struct {
	Path    string
	Problem string
	Advice  string
	Err     error // the cause, or nil
}

// Error says what is wrong and what to do.
func (e *SealedError) Error() string {
	cause := ""
	if e.Err != nil {
		cause = ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s: %s%s; %s", e.Path, e.Problem, cause, e.Advice)
}

// Is makes every SealedError ErrSealed.
func (e *SealedError) Is(target error) bool { return target == ErrSealed }

// Unwrap gives the cause.
func (e *SealedError) Unwrap() error { return e.Err }

// sealedKeys is a KeyStore of files that a Box encrypts.
type sealedKeys struct {
	fileKeys
	box Box
}

// NewSealedKeys is a KeyStore in a folder, which must exist and be private. Keys are ECDSA P-256, in files of mode 0600
// whose names end in .key.sealed. A key that is there in plain stays as it is and is used, until rotation replaces it
// by a sealed one: [Generation] says which is which.
func NewSealedKeys(dir string, box Box) KeyStore { return sealedKeys{fileKeys{dir}, box} }

// purpose binds a sealed key to its name, so that no key can be put in another's place.
func purpose(name KeyName) string { return "authority key " + name.String() }

// Signer implements KeyStore.
func (k sealedKeys) Signer(name KeyName) (crypto.Signer, error) {
	path := sealedPath(k.dir, name)
	sealed, err := readPrivate(path, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return k.fileKeys.Signer(name)
	case err != nil:
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	if _, err := os.Lstat(k.path(name)); err == nil {
		return nil, &CorruptError{Path: path, Problem: "the key is there sealed, and in plain as " + filepath.Base(k.path(name)), Advice: "move one of them away"}
	}
	text, err := k.box.Open(purpose(name), sealed)
	if err != nil {
		return nil, &SealedError{Path: path, Problem: "the sealed key cannot be opened", Err: err,
			Advice: "start Ward on the machine, or with the credential, that sealed it (authority.keys); when that is lost, " + restore}
	}
	return parseKey(path, text)
}

// Create implements KeyStore.
func (k sealedKeys) Create(name KeyName) (crypto.Signer, error) {
	if _, err := os.Lstat(k.path(name)); err == nil {
		return nil, fmt.Errorf("authority: key: %s: %w", k.path(name), fs.ErrExist)
	}
	key, text, err := newKey()
	if err != nil {
		return nil, err
	}
	sealed, err := k.box.Seal(purpose(name), text)
	if err != nil {
		return nil, fmt.Errorf("authority: key %s: %w", name, err)
	}
	if err := writeNew(sealedPath(k.dir, name), sealed); err != nil {
		return nil, err
	}
	return key, nil
}

// Place implements KeyStore.
func (k sealedKeys) Place(name KeyName) Place {
	if _, err := os.Lstat(k.path(name)); err == nil {
		return k.fileKeys.Place(name)
	}
	return Place{Path: sealedPath(k.dir, name), Sealed: true}
}
