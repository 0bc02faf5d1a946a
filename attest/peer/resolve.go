package peer

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/attest"
)

// Resolve pins the process that r names. The reference was taken by another ward of this host (Pinner.Refer), which
// still has the connection and has not read from it; see the package's comment for why nothing can come between.
//
// A process is refused that has exited (attest.ErrExited), whose pid is another's by now (attest.ErrReference), or
// that is not the user any more who connected (attest.ErrMismatch). A connection is refused, as attest.ErrReference,
// that lies in another network namespace, that is not the one with this cookie any more, or that is not established
// at the client's end; and for everything that Pinner.TCP refuses of those who hold it.
func (p *Pinner) Resolve(ctx context.Context, r attest.Reference) (*Process, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	if r.Process.PID != 0 {
		return p.resolveProcess(r.Process)
	}
	return p.resolveConn(ctx, r.Conn)
}

func (p *Pinner) resolveProcess(r attest.ProcessReference) (*Process, error) {
	pidfd, err := openPidfd(r.PID)
	if err != nil {
		return nil, err
	}
	switch inode := pidfsInode(pidfd); {
	case inode == 0:
		err = fmt.Errorf("%w: %w", attest.ErrReference, errNoPidfs)
	case inode != r.Inode:
		err = fmt.Errorf("%w: pid %d is another process by now", attest.ErrReference, r.PID)
	}
	if err != nil {
		unix.Close(pidfd)
		return nil, err
	}
	return p.pin(pidfd, claim{pid: r.PID, uid: r.UID, gid: r.GID, gidKnown: true, strength: attest.Strong})
}

func (p *Pinner) resolveConn(ctx context.Context, r attest.ConnReference) (*Process, error) {
	p.searching.RLock()
	defer p.searching.RUnlock()
	if p.isClosed() {
		return nil, ErrClosed
	}
	if r.NetNS != p.diag.inode {
		return nil, fmt.Errorf("%w: it was taken in network namespace %d, this process is in %d", attest.ErrReference, r.NetNS, p.diag.inode)
	}
	return p.holder(ctx, func() (tcpSocket, error) { return p.referredSocket(r) })
}

// referredSocket finds the socket that r names. Its cookie makes sure of it: there is no end of ours to ask here.
func (p *Pinner) referredSocket(r attest.ConnReference) (tcpSocket, error) {
	s, err := p.diag.socket(unmapped(r.Client), unmapped(r.Dialed))
	if errors.Is(err, unix.ENOENT) {
		return s, fmt.Errorf("%w: the client's socket is gone", attest.ErrReference)
	}
	if err != nil {
		return s, err
	}
	if s.cookie != r.Cookie {
		return s, fmt.Errorf("%w: the client's socket is another by now", attest.ErrReference)
	}
	if err := s.inUse(); err != nil {
		return s, fmt.Errorf("%w: %w", attest.ErrReference, err)
	}
	return p.placed(s), nil
}
