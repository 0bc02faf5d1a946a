// Package seal encrypts what an agent keeps on disk, under a key-encryption key that is not on that disk.
//
// # What for
//
// A thief of a disk or of a backup reads files, whatever their modes. The CA's key and the SVIDs that an agent keeps
// for a time without its authority are worth stealing. So they can be sealed: encrypted under a key that only this
// machine's TPM 2.0 gives out ([OpenTPM]), or that the service manager hands over at start ([OpenCredential]), which in
// turn can be bound to a TPM or come from elsewhere. [OpenFile] keeps the key in a file beside what it encrypts. That
// keeps out who gets one of the two without the other, protects no backup that has both, and is named accordingly.
//
// # How
//
// A [Box] holds the key-encryption key. Each sealing derives a key of its own from it by HKDF (RFC 5869), from a random
// salt and the purpose, and encrypts with AES-256-GCM. What was sealed, byte for byte:
//
//	magic    8   "WARDSEAL"
//	version  1   1
//	key      16  names the key-encryption key, so that another one is told from damage
//	salt     32
//	nonce    12
//	text     n
//	tag      16
//
// The first three fields and the purpose are authenticated with the text: a file that is moved to another's place
// does not open there. An older content of the same file does; whoever can write into the folder can put it back.
//
// # Threat
//
// Root on the running host can ask the TPM as Ward does, and read Ward's memory: sealing is against those who have the
// files and not the machine. With the policy on PCR 7 they also need the firmware's secure boot state of when it was
// sealed. Between Ward and the TPM the key is encrypted, in a session salted to the storage root, so listening on the
// bus is not enough; an active interposer that was there from the start is not met. What parsers here read is not
// trusted, and no error quotes it.
//
// See TPM 2.0 Library part 1 (§19 sessions, §23 storage), NIST SP 800-38D, and systemd.exec(5) on credentials.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Errors that a caller can tell apart with errors.Is.
var (
	// ErrMalformed: this was never sealed, or has been cut.
	ErrMalformed = errors.New("not something that Ward has sealed")
	// ErrForeign: it was sealed under another key: by another machine's TPM, or with another credential.
	ErrForeign = errors.New("sealed under another key")
	// ErrTampered: it has been changed, or was sealed for another purpose.
	ErrTampered = errors.New("changed since it was sealed, or sealed for something else")
	// ErrUnavailable: what holds the key cannot be asked, or refuses.
	ErrUnavailable = errors.New("the sealing key is not to be had")
)

const (
	magic   = "WARDSEAL\x01"
	idSize  = 16
	keySize = 32
	salt    = 32
	// around is how much longer what is sealed is than what was to be.
	around = len(magic) + idSize + salt + 12 + 16
	// MaxPlain is how many bytes can be sealed at once.
	MaxPlain = 1 << 20
	// leastSecret is how many bytes a key-encryption key has at least.
	leastSecret = 32
)

// Box seals and opens. It is safe for use by many goroutines.
type Box struct {
	secret []byte
	id     []byte
}

// New is a Box under a secret of at least 32 bytes that nobody could guess.
func New(secret []byte) (*Box, error) {
	if len(secret) < leastSecret {
		return nil, fmt.Errorf("seal: a secret of %d bytes; %d are the least", len(secret), leastSecret)
	}
	id, err := hkdf.Key(sha256.New, secret, nil, "ward seal v1 key id", idSize)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &Box{secret: bytes.Clone(secret), id: id}, nil
}

// aead is the cipher for one sealing.
func (b *Box) aead(purpose string, salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, b.secret, salt, "ward seal v1 encrypt\x00"+purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block) // the nonce is the module's own, as FIPS 140-3 wants it (SP 800-38D §8.2.2)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return aead, nil
}

// Seal encrypts plain for a purpose, which names what it is, and where it belongs.
func (b *Box) Seal(purpose string, plain []byte) ([]byte, error) {
	if purpose == "" {
		return nil, errors.New("seal: no purpose given")
	}
	if len(plain) > MaxPlain {
		return nil, fmt.Errorf("seal: %d bytes; %d are the most", len(plain), MaxPlain)
	}
	head := make([]byte, 0, around+len(plain))
	head = append(append(head, magic...), b.id...)
	at := len(head)
	head = head[:at+salt]
	if _, err := rand.Read(head[at:]); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := b.aead(purpose, head[at:])
	if err != nil {
		return nil, err
	}
	return aead.Seal(head, nil, plain, authenticated(purpose, head)), nil
}

// Open decrypts what Seal made for the same purpose.
func (b *Box) Open(purpose string, sealed []byte) ([]byte, error) {
	if len(sealed) < around || len(sealed) > around+MaxPlain || !bytes.HasPrefix(sealed, []byte(magic)) {
		return nil, ErrMalformed
	}
	head, text := sealed[:len(magic)+idSize+salt], sealed[len(magic)+idSize+salt:]
	if !bytes.Equal(head[len(magic):len(magic)+idSize], b.id) {
		return nil, ErrForeign
	}
	aead, err := b.aead(purpose, head[len(magic)+idSize:])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, text, authenticated(purpose, head))
	if err != nil {
		return nil, ErrTampered
	}
	return plain, nil
}

// authenticated is what is not encrypted and yet must be the same when it is opened. The head has one length, so the
// two cannot run into one another.
func authenticated(purpose string, head []byte) []byte {
	return append(bytes.Clone(head), purpose...)
}
