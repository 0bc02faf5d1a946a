// Package proxyproto reads the header of the PROXY protocol, version 2, with which a balancer that passes TLS through
// says whose connection it hands on.
//
// # Why
//
// Behind a balancer every connection comes from the balancer's address. Who calls is proved by the caller's certificate,
// which a balancer that passes bytes through does not touch; from where, only the balancer knows. Whoever shows no
// identity is known by its address alone: the trail names it, and sources are kept apart by it.
//
// # Threat
//
// The header is in clear and unsigned: whoever may send one can claim any address. It is therefore read from peers that
// the operator has named, and there it must be; from anyone else it is no header but bytes that are not TLS. What it
// says is an address for people to read and for fairness between sources. It never makes an identity: the protocol's
// own fields about TLS and certificates are not looked at.
//
// # What is read
//
// The binary version over TCP, no other. The text of version 1 is refused: its end is searched for in bytes of the
// peer's choosing, and it has nothing that version 2 has not. So are families that name no address of a client:
// unspecified, Unix sockets, datagrams. Lengths are exact, additional fields must fill the header to its last byte, and
// a checksum counts when there is one. Nothing after the header is consumed, so the connection under it stays as it was.
//
// The text of the protocol: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt; its sections are cited as PROXY §.
package proxyproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
)

// Limit is the longest header that is read, in bytes. The fields that balancers add take a few hundred.
const Limit = 4096

// Header is what a balancer says of a connection.
type Header struct {
	// Local says that the connection is the balancer's own, a check of health for example: it has no other client.
	Local bool
	// Source is the client, Destination what it connected to; IPv4 as such. Neither is valid where Local.
	Source, Destination netip.AddrPort
}

// Error says why bytes are no acceptable header, in words of ours.
type Error struct{ Why string }

func (e *Error) Error() string { return e.Why }

func refuse(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n" // PROXY §2.2
	fixed     = len(signature) + 4
)

// Read takes a header from r, and not a byte more than it has. What is no header is an *Error; io.EOF means that r ended
// before its first byte.
func Read(r io.Reader) (Header, error) {
	var start [fixed]byte
	// A peer that speaks of something else is told apart by its first bytes: it need not send sixteen.
	for n := 0; n < fixed; {
		m, err := r.Read(start[n:])
		n += m
		if k := min(n, len(signature)); string(start[:k]) != signature[:k] {
			return Header{}, refuse("no header of version 2") // PROXY §2.2: the signature is matched as a whole
		}
		if n < fixed && err != nil {
			if n > 0 {
				err = ended(err)
			}
			return Header{}, err
		}
	}
	version, command, family := start[12]>>4, start[12]&0xf, start[13]
	switch {
	case version != 2: // PROXY §2.2: "the receiver must only accept this value"
		return Header{}, refuse("version %d", version)
	case command > 1: // PROXY §2.2: "Receivers must drop connections presenting unexpected values here"
		return Header{}, refuse("command %d", command)
	}
	length := int(binary.BigEndian.Uint16(start[14:]))
	if fixed+length > Limit {
		return Header{}, refuse("%d bytes", fixed+length)
	}
	whole := make([]byte, fixed+length)
	copy(whole, start[:])
	if _, err := io.ReadFull(r, whole[fixed:]); err != nil {
		return Header{}, ended(err)
	}
	if command == 0 {
		// PROXY §2.2: "must use the real connection endpoints and discard the protocol block including the family
		// which is ignored"
		return Header{Local: true}, nil
	}
	return proxied(whole, family)
}

// ended is an end of input in the middle of a header.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse("it ends in the middle")
	}
	return err
}

// proxied reads the addresses of a connection that is handed on for a client.
func proxied(whole []byte, family byte) (Header, error) {
	var size int // of an address
	switch family {
	case 0x11: // PROXY §2.2: TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	default:
		// PROXY §2.2: a receiver is free to reject AF_UNSPEC, AF_UNIX and datagrams; other values "must be rejected as
		// invalid by receivers"
		return Header{}, refuse("family 0x%02x names no client of a TCP connection", family)
	}
	block := whole[fixed:]
	if len(block) < 2*size+4 {
		return Header{}, refuse("%d bytes have no room for the addresses", len(block))
	}
	if err := fields(whole, fixed+2*size+4); err != nil {
		return Header{}, err
	}
	at := func(n int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(block[n*size : (n+1)*size])
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(block[2*size+2*n:]))
	}
	h := Header{Source: at(0), Destination: at(1)}
	if a := h.Source.Addr(); a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || h.Source.Port() == 0 {
		return Header{}, refuse("%s can be no client", h.Source)
	}
	return h, nil
}

// fields sees that the additional fields from start on fill the header, and that its checksum is right where it has one.
func fields(whole []byte, start int) error {
	const checksum = 0x03 // PROXY §2.2.3: PP2_TYPE_CRC32C
	found := false
	for rest := whole[start:]; len(rest) > 0; {
		if len(rest) < 3 {
			return refuse("a field is cut off")
		}
		kind, n := rest[0], int(binary.BigEndian.Uint16(rest[1:]))
		if n > len(rest)-3 { // PROXY §2.2: the header ends where its length says
			return refuse("a field of %d bytes where %d are left", n, len(rest)-3)
		}
		value := rest[3 : 3+n]
		rest = rest[3+n:]
		if kind != checksum {
			continue
		}
		if found || n != 4 {
			return refuse("a checksum of %d bytes, or a second one", n)
		}
		found = true
		want := binary.BigEndian.Uint32(value)
		clear(value) // PROXY §2.2.3: the sum is taken with its own bytes as zeros
		if crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)) != want {
			return refuse("the checksum is wrong")
		}
	}
	return nil
}
