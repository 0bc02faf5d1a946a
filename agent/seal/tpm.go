package seal

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// TPMOptions says which TPM holds the key, and where what it has sealed lies.
type TPMOptions struct {
	// Device is a character device (/dev/tpmrm0), a Unix socket on which TPM commands are spoken, or such a TCP port of
	// this host as `tcp:127.0.0.1:2321`.
	Device string
	// Path is the file of the sealed key. It is made, with a new key, when it is missing.
	Path string
	// SecureBoot binds the key to PCR 7 as it is now: to the firmware's secure boot state, and the certificates that
	// vouched for what was booted. When either changes, as by a firmware update, the key is unavailable for good; so
	// switch this off for one start before such an update, and on again after it. A changed choice is carried out at
	// the next start at which the key opens.
	SecureBoot bool
}

// tpmTimeout is how long a TPM may take for everything. Hardware takes a second, most of it for the storage root.
const tpmTimeout = 30 * time.Second

// OpenTPM is a Box under a key that a TPM 2.0 has sealed. The TPM is asked once; from then on the key is in memory.
func OpenTPM(ctx context.Context, o TPMOptions) (*Box, error) {
	if o.Device == "" || o.Path == "" {
		return nil, errors.New("seal: no TPM or no file given")
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTimeout)
	defer cancel()
	text, err := readPrivate(o.Path, mostBlob)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	device, err := dial(ctx, o.Device)
	if err != nil {
		return nil, fmt.Errorf("%w: TPM: %w", ErrUnavailable, err)
	}
	defer device.Close()
	t := &tpm{device: device}
	if err := t.openRoot(); err != nil {
		return nil, fmt.Errorf("%w: the TPM's storage root: %w", ErrUnavailable, err)
	}
	defer t.closeRoot()
	if missing {
		return t.create(o)
	}
	b, err := parseBlob(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Path, err)
	}
	secret, err := t.unseal(b)
	switch {
	case errors.Is(err, tpm2.TPMRCPolicyFail), errors.Is(err, tpm2.TPMRCPCRChanged):
		return nil, fmt.Errorf("%w: the TPM refuses %s: the secure boot state (PCR 7) is not the one it was sealed in", ErrUnavailable, o.Path)
	case errors.Is(err, tpm2.TPMRCIntegrity):
		return nil, fmt.Errorf("%w: %s was sealed by another TPM, before this one was cleared, or has been changed", ErrForeign, o.Path)
	case err != nil:
		return nil, fmt.Errorf("%w: the TPM does not open %s: %w", ErrUnavailable, o.Path, err)
	case b.secureBoot != o.SecureBoot:
		return t.keep(secret, o, true)
	}
	return New(secret)
}

// create makes a key.
func (t *tpm) create(o TPMOptions) (*Box, error) {
	secret := make([]byte, keySize)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return t.keep(secret, o, false)
}

// keep has a key sealed, and believes that only after the TPM has given it back.
func (t *tpm) keep(secret []byte, o TPMOptions, replace bool) (*Box, error) {
	b, err := t.seal(secret, o.SecureBoot)
	if err != nil {
		return nil, fmt.Errorf("%w: the TPM seals nothing: %w", ErrUnavailable, err)
	}
	back, err := t.unseal(b)
	if err == nil && subtle.ConstantTimeCompare(back, secret) != 1 {
		err = errors.New("it is something else")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the TPM does not give back what it has sealed: %w", ErrUnavailable, err)
	}
	if err := privateDir(filepath.Dir(o.Path)); err != nil {
		return nil, err
	}
	if err := write(o.Path, b.marshal(), replace); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return New(secret)
}

// tpm is a conversation with a TPM.
type tpm struct {
	device transport.TPM
	root   tpm2.CreatePrimaryResponse
	public tpm2.TPMTPublic // of the root
}

// openRoot makes the storage root, which for one TPM and owner seed is always the same key (TPM 2.0 part 1 §14).
func (t *tpm) openRoot() error {
	root, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t.device)
	if err != nil {
		return err
	}
	t.root = *root
	public, err := root.OutPublic.Contents()
	if err != nil {
		t.closeRoot()
		return err
	}
	t.public = *public
	return nil
}

func (t *tpm) closeRoot() {
	_, _ = tpm2.FlushContext{FlushHandle: t.root.ObjectHandle}.Execute(t.device) // the resource manager does it else
}

// session authorises the use of the storage root, and encrypts what passes to and from the TPM.
func (t *tpm) session() tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptInOut), tpm2.Salted(t.root.ObjectHandle, t.public))
}

func (t *tpm) parent() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: t.root.ObjectHandle, Name: t.root.Name, Auth: t.session()}
}

// bootState selects PCR 7.
func bootState() tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(7)}}}
}

// seal has the TPM encrypt a secret under its storage root.
func (t *tpm) seal(secret []byte, secureBoot bool) (*blob, error) {
	public := tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		// For this TPM and parent only. Nothing can be guessed here, so the lock-out against guessing (DA) has no part.
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: !secureBoot}}
	if secureBoot {
		policy, err := t.bootPolicy()
		if err != nil {
			return nil, err
		}
		public.AuthPolicy = policy
	}
	made, err := tpm2.Create{ParentHandle: t.parent(),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		InPublic:    tpm2.New2B(public)}.Execute(t.device)
	if err != nil {
		return nil, err
	}
	return &blob{secureBoot: secureBoot, public: made.OutPublic.Bytes(), private: made.OutPrivate.Buffer}, nil
}

// bootPolicy is the policy that holds while PCR 7 is as it is now.
func (t *tpm) bootPolicy() (tpm2.TPM2BDigest, error) {
	session, end, err := tpm2.PolicySession(t.device, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	defer func() { _ = end() }()
	// An empty digest stands for the PCR's present value (TPM 2.0 part 3, TPM2_PolicyPCR).
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: bootState()}).Execute(t.device); err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	digest, err := tpm2.PolicyGetDigest{PolicySession: session.Handle()}.Execute(t.device)
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	return digest.PolicyDigest, nil
}

// unseal has the TPM give the secret out again.
func (t *tpm) unseal(b *blob) ([]byte, error) {
	loaded, err := tpm2.Load{ParentHandle: t.parent(), InPrivate: tpm2.TPM2BPrivate{Buffer: b.private},
		InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](b.public)}.Execute(t.device)
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(t.device) }()
	options := []tpm2.AuthOption{tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(t.root.ObjectHandle, t.public)}
	auth := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, options...)
	if b.secureBoot {
		auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(device transport.TPM, handle tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyPCR{PolicySession: handle, Pcrs: bootState()}.Execute(device)
			return err
		}, options...)
	}
	out, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: auth}}.Execute(t.device)
	if err != nil {
		return nil, err
	}
	return out.OutData.Buffer, nil
}
