package authority

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	bolterrors "go.etcd.io/bbolt/errors"
)

// kind makes an error of Open one that a caller can tell apart: what the system refused is ErrUnreadable.
func kind(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{ErrCorrupt, ErrUnsafe, ErrInUse, ErrTrustDomain, ErrSealed, ErrUnreadable} {
		if errors.Is(err, known) {
			return err
		}
	}
	var path *fs.PathError
	var link *os.LinkError
	var number syscall.Errno
	if errors.As(err, &path) || errors.As(err, &link) || errors.As(err, &number) || errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return err
}

// Outage reports whether an error of Open means that the authority is not to be had for now: its store cannot be read,
// is damaged, or is sealed. SVIDs that were issued before are no less true for that, and an agent that has kept some may
// serve them. What points to a mistake or to an attack (files that others can write, another trust domain, a second
// process) is no outage.
func Outage(err error) bool {
	return errors.Is(err, ErrUnreadable) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrSealed)
}
