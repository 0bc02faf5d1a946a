package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// ServedBy says of a connection to a Unix socket whether one of these users listens on it. BE §5 requires that brokers
// authenticate the server: whoever else could take the socket's place would hand out identities of its own making. The
// kernel names the user who began to listen, which for a socket that systemd holds is root.
func ServedBy(uids ...uint32) func(net.Conn) error {
	uids = slices.Clone(uids)
	return func(c net.Conn) error {
		raw, ok := c.(syscall.Conn)
		if !ok {
			return fmt.Errorf("workload broker: it cannot be told who is behind a %T", c)
		}
		control, err := raw.SyscallConn()
		if err != nil {
			return err
		}
		var cred *unix.Ucred
		var inner error
		if err := control.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
			return err
		}
		switch {
		case inner != nil:
			return fmt.Errorf("workload broker: who listens on the agent's socket: %w", inner)
		case !slices.Contains(uids, cred.Uid):
			return fmt.Errorf("workload broker: uid %d listens on the agent's socket, which is none of %v: something else has taken the agent's place", cred.Uid, uids)
		}
		return nil
	}
}

// served is the transport security of a client: none on the wire, and the kernel's word for who is at the other end.
type served struct{ verify func(net.Conn) error }

type servedInfo struct{}

// AuthType implements credentials.AuthInfo.
func (servedInfo) AuthType() string { return "verified-agent" }

// ClientHandshake writes and reads nothing.
func (s served) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := s.verify(c); err != nil {
		return nil, nil, err
	}
	return c, servedInfo{}, nil
}

// ServerHandshake is refused: these credentials are a client's.
func (served) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload broker: the credentials are for clients")
}

// Info implements credentials.TransportCredentials.
func (served) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "verified-agent"}
}

// Clone implements credentials.TransportCredentials.
func (s served) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials.
func (served) OverrideServerName(string) error { return nil }
