package seal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// device speaks to a TPM: it writes a command and reads its response (TPM 2.0 part 1 §18).
type device struct {
	io.ReadWriteCloser
	stop func() bool
}

const (
	responseHeader = 10   // tag 2, size 4, code 4
	mostResponse   = 4096 // what drivers and software TPMs take and give
)

// deadline is a connection that can be made to fail at a time.
type deadline interface{ SetDeadline(time.Time) error }

// dial opens a TPM by its device file, its Unix socket, or its port on this host. With the context's end reading and
// writing fail, where the system knows of such a thing.
func dial(ctx context.Context, name string) (*device, error) {
	var conn io.ReadWriteCloser
	var err error
	if address, ok := strings.CutPrefix(name, "tcp:"); ok {
		// Whoever listens there gets to know what is sealed, and answers for the TPM: never over a network.
		if at, err := netip.ParseAddrPort(address); err != nil || !at.Addr().IsLoopback() {
			return nil, fmt.Errorf("%s is not a port of this host", name)
		}
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
	} else {
		info, statErr := os.Stat(name)
		switch {
		case statErr != nil:
			return nil, statErr
		case info.Mode()&os.ModeSocket != 0:
			conn, err = new(net.Dialer).DialContext(ctx, "unix", name)
		case info.Mode()&os.ModeCharDevice != 0:
			conn, err = os.OpenFile(name, os.O_RDWR, 0)
		default:
			return nil, fmt.Errorf("%s is neither a device nor a socket", name)
		}
	}
	if err != nil {
		return nil, err
	}
	d := &device{ReadWriteCloser: conn}
	d.stop = context.AfterFunc(ctx, func() {
		if c, ok := conn.(deadline); ok {
			_ = c.SetDeadline(time.Unix(1, 0))
		}
	})
	return d, nil
}

// Close ends the conversation.
func (d *device) Close() error {
	d.stop()
	return d.ReadWriteCloser.Close()
}

// Send implements transport.TPM.
func (d *device) Send(command []byte) ([]byte, error) {
	if _, err := d.Write(command); err != nil {
		return nil, err
	}
	// A device gives a response in one read and forgets the rest of it; a socket may give it in pieces.
	response := make([]byte, mostResponse)
	n, err := io.ReadAtLeast(d, response, responseHeader)
	if err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < responseHeader || size > mostResponse || int(size) < n {
		return nil, errors.New("a response of a wrong length")
	}
	if _, err := io.ReadFull(d, response[n:size]); err != nil {
		return nil, err
	}
	return response[:size], nil
}
