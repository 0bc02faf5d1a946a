package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// mostCredential is the size of the largest credential that systemd hands over (systemd.exec(5)).
const mostCredential = 1 << 20

// OpenCredential is a Box under a credential that the service manager hands over: the file of this name in dir. An empty
// dir stands for $CREDENTIALS_DIRECTORY. The credential must have 32 bytes or more, and be made by a machine, as by
// `head -c 32 /dev/urandom | systemd-creds encrypt --name NAME - FILE`; a password does not do.
func OpenCredential(dir, name string) (*Box, error) {
	if dir == "" {
		dir = os.Getenv("CREDENTIALS_DIRECTORY")
	}
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return nil, errors.New("seal: a credential's name is that of a file, without a folder")
	case dir == "":
		return nil, fmt.Errorf("%w: the service manager has handed over no credentials; give the unit LoadCredentialEncrypted=%s", ErrUnavailable, name)
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: there is no credential %s; give the unit LoadCredentialEncrypted=%s", ErrUnavailable, path, name)
	case err != nil:
		return nil, fmt.Errorf("%w: credential: %w", ErrUnavailable, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: credential: %w", ErrUnavailable, err)
	}
	// systemd gives credentials modes 0400 and 0440, and to a service's user by an access list whose mask shows as the
	// group's mode; so the group may read. Nobody else may.
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o027 != 0 {
		return nil, fmt.Errorf("%w: the credential %s has mode %04o", ErrUnsafe, path, info.Mode().Perm())
	}
	content, err := readAll(f, mostCredential)
	if err != nil {
		return nil, fmt.Errorf("%w: the credential %s: %w", ErrUnavailable, path, err)
	}
	if len(content) < leastSecret {
		return nil, fmt.Errorf("%w: the credential %s has %d bytes; give it %d random ones", ErrUnavailable, path, len(content), leastSecret)
	}
	// A secret of its own, so that whatever else the credential is used for does not meet with this.
	secret, err := hkdf.Key(sha256.New, content, nil, "ward seal v1 credential", keySize)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return New(secret)
}

// OpenFile is a Box under a key in a file of mode 0600, which is made when it is missing. It is for a host that has
// neither a TPM nor credentials: whoever has both this file and what it seals has everything.
func OpenFile(path string) (*Box, error) {
	secret, err := readPrivate(path, leastSecret)
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, leastSecret)
		if _, err := rand.Read(secret); err != nil {
			return nil, fmt.Errorf("seal: %w", err)
		}
		if err := privateDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
		if err = write(path, secret, false); errors.Is(err, fs.ErrExist) { // another process was faster
			secret, err = readPrivate(path, leastSecret)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if len(secret) != leastSecret {
		return nil, fmt.Errorf("%w: %s is not a key of %d bytes; remove it, and what it has sealed is lost", ErrUnavailable, path, leastSecret)
	}
	return New(secret)
}
