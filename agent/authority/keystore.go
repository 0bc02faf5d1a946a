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
	"path/filepath"
)

// ErrNoKey: the key store has no key of this name.
var ErrNoKey = errors.New("no such key")

// KeyStore keeps private keys and signs with them. Implemented by files here; TPM 2.0 and PKCS#11 are to follow,
// which is why a key is a crypto.Signer and nothing more.
type KeyStore interface {
	// Signer is the key of this name, or ErrNoKey.
	Signer(name KeyName) (crypto.Signer, error)
	// Create makes a new key, which is durable when Create returns. It fails when there is one of this name.
	Create(name KeyName) (crypto.Signer, error)
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
		return nil, fmt.Errorf("%w: %s", ErrNoKey, path)
	case err != nil:
		return nil, fmt.Errorf("authority: key: %w", err)
	}
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	if err := writeNew(k.path(name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	return key, nil
}
