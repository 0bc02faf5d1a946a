package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNoKey: the key store has no key of this name.
var ErrNoKey = errors.New("no such key")

// KeyStore keeps private keys and signs with them. Implemented by plain and by sealed files here; PKCS#11 is to
// follow, which is why a key is a crypto.Signer and nothing more.
type KeyStore interface {
	// Signer is the key of this name, or ErrNoKey.
	Signer(name KeyName) (crypto.Signer, error)
	// Create makes a new key, which is durable when Create returns. It fails when there is one of this name.
	Create(name KeyName) (crypto.Signer, error)
	// Remove destroys a key, durably. It is no error when there is none.
	Remove(name KeyName) error
	// Place says where a key is, or where it would be made.
	Place(name KeyName) Place
}

// Place is where a key is kept.
type Place struct {
	Path   string // the file; "" when it is in none
	Sealed bool   // whether it is encrypted there
}

// fileKeys is a KeyStore of PKCS#8 PEM files of mode 0600.
type fileKeys struct{ dir string }

// NewFileKeys is a KeyStore in a folder, which must exist and be private. Keys are ECDSA P-256.
func NewFileKeys(dir string) KeyStore { return fileKeys{dir} }

func keyPath(dir string, name KeyName) string { return filepath.Join(dir, name.String()+".key") }

func (k fileKeys) path(name KeyName) string { return keyPath(k.dir, name) }

// Signer implements KeyStore.
func (k fileKeys) Signer(name KeyName) (crypto.Signer, error) {
	path := k.path(name)
	text, err := readPrivate(path, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(sealedPath(k.dir, name)); err == nil {
			return nil, &SealedError{Path: sealedPath(k.dir, name), Problem: "the key is sealed, and config says that keys are not", Advice: "set authority.keys.seal to what sealed it"}
		}
		return nil, fmt.Errorf("%w: %s", ErrNoKey, path)
	case err != nil:
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	return parseKey(path, text)
}

// parseKey reads a key in PKCS#8 PEM form, which came from the file at path.
func parseKey(path string, text []byte) (crypto.Signer, error) {
	// What the parsers say is left out of the error: it could repeat a part of the key.
	damaged := &CorruptError{Path: path, Problem: "the file is not an ECDSA P-256 key in PKCS#8 PEM form", Advice: restore}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, damaged
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || signer.Curve != elliptic.P256() {
		return nil, damaged
	}
	return signer, nil
}

// Create implements KeyStore.
func (k fileKeys) Create(name KeyName) (crypto.Signer, error) {
	key, text, err := newKey()
	if err != nil {
		return nil, err
	}
	if err := writeNew(k.path(name), text); err != nil {
		return nil, err
	}
	return key, nil
}

// Remove implements KeyStore. A sealed key goes as well: that takes no box.
func (k fileKeys) Remove(name KeyName) error {
	return errors.Join(removeFile(k.path(name)), removeFile(sealedPath(k.dir, name)))
}

// Place implements KeyStore.
func (k fileKeys) Place(name KeyName) Place { return Place{Path: k.path(name)} }

// newKey makes a key, and its PKCS#8 PEM form.
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("authority: key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("authority: key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// removeFile removes a file that may be absent, durably.
func removeFile(path string) error {
	switch err := os.Remove(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("authority: %w", err)
	}
	return syncDir(filepath.Dir(path))
}
