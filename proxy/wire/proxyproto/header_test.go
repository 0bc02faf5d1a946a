package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// block writes a header: the byte of version and command, that of the family, and what follows the length.
func block(command, family byte, rest ...string) string {
	body := strings.Join(rest, "")
	out := append([]byte(signature), command, family)
	return string(binary.BigEndian.AppendUint16(out, uint16(len(body)))) + body
}

// field is one additional field.
func field(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

// summed puts the right checksum in place of the four last bytes of a header.
func summed(header string) string {
	b := []byte(header)
	clear(b[len(b)-4:])
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

const (
	four = "\xc0\x00\x02\x07\x0a\x00\x00\x05\xdd\xd5\x20\xfb" // 192.0.2.7:56789 to 10.0.0.5:8443
	six  = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\xdd\xd5\x20\xfb"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x07" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x05\xdd\xd5\x20\xfb"
)

func TestRead(t *testing.T) {
	v4 := Header{Source: netip.MustParseAddrPort("192.0.2.7:56789"), Destination: netip.MustParseAddrPort("10.0.0.5:8443")}
	v6 := Header{Source: netip.MustParseAddrPort("[2001:db8::7]:56789"), Destination: netip.MustParseAddrPort("[2001:db8::5]:8443")}
	for name, c := range map[string]struct {
		in   string
		want Header
		bad  string // a part of what is said of it
	}{
		"§2.2 TCP over IPv4":                         {in: block(0x21, 0x11, four), want: v4},
		"§2.2 TCP over IPv6":                         {in: block(0x21, 0x21, six), want: v6},
		"§2.2 IPv4 inside IPv6 is IPv4":              {in: block(0x21, 0x21, mapped), want: v4},
		"§2.2 LOCAL":                                 {in: block(0x20, 0x00), want: Header{Local: true}},
		"§2.2 LOCAL's block is discarded":            {in: block(0x20, 0x11, four, "x"), want: Header{Local: true}},
		"§2.2 LOCAL's family is ignored":             {in: block(0x20, 0xff, "anything"), want: Header{Local: true}},
		"§2.2.1 fields are skipped":                  {in: block(0x21, 0x11, four, field(0x01, "h2"), field(0x02, "ehr.clinic.example"), field(0xea, "\x01vpce-1")), want: v4},
		"§2.2.4 padding, the empty one too":          {in: block(0x21, 0x21, six, field(0x04, ""), field(0x04, "\x00\x00")), want: v6},
		"§2.2.6 a claim of a certificate is nothing": {in: block(0x21, 0x11, four, field(0x20, "\x07\x00\x00\x00\x00"+field(0x22, "spiffe://clinic.test/app/portal"))), want: v4},
		"§2.2.3 the right checksum":                  {in: summed(block(0x21, 0x11, four, field(0x04, "x"), field(0x03, "0000"))), want: v4},
		"as long as may be":                          {in: block(0x21, 0x11, four, field(0x04, strings.Repeat("x", Limit-fixed-15))), want: v4},

		"§2.1 version 1":                               {in: "PROXY TCP4 192.0.2.7 10.0.0.5 56789 8443\r\n", bad: "no header of version 2"},
		"§2.1 the shortest of version 1":               {in: "PROXY UNKNOWN\r\n", bad: "no header of version 2"},
		"TLS":                                          {in: "\x16\x03\x01\x02\x00\x01\x00", bad: "no header of version 2"},
		"HTTP":                                         {in: "GET / HTTP/1.1\r\n", bad: "no header of version 2"},
		"a wrong last byte of the signature":           {in: "\r\n\r\n\x00\r\nQUIT\r" + block(0x21, 0x11, four)[12:], bad: "no header of version 2"},
		"§2.2 version 1 in binary":                     {in: block(0x11, 0x11, four), bad: "version 1"},
		"§2.2 version 3":                               {in: block(0x31, 0x11, four), bad: "version 3"},
		"§2.2 a command that is not assigned":          {in: block(0x22, 0x11, four), bad: "command 2"},
		"§2.2 an unspecified family":                   {in: block(0x21, 0x00), bad: "names no client"},
		"§2.2 an unspecified protocol over IPv4":       {in: block(0x21, 0x10, four), bad: "names no client"},
		"§2.2 UDP":                                     {in: block(0x21, 0x12, four), bad: "names no client"},
		"§2.2 a Unix socket":                           {in: block(0x21, 0x31, strings.Repeat("\x00", 216)), bad: "names no client"},
		"§2.2 a family that is not assigned":           {in: block(0x21, 0x41, four), bad: "names no client"},
		"§2.2 IPv4 without room":                       {in: block(0x21, 0x11, four[:11]), bad: "no room"},
		"§2.2 IPv6 with the room of IPv4":              {in: block(0x21, 0x21, four), bad: "no room"},
		"§2.2 partial: the signature":                  {in: signature[:7], bad: "in the middle"},
		"§2.2 partial: the start":                      {in: block(0x21, 0x11, four)[:15], bad: "in the middle"},
		"§2.2 partial: the start alone":                {in: block(0x21, 0x11, four)[:16], bad: "in the middle"},
		"§2.2 partial: the block":                      {in: block(0x21, 0x11, four)[:27], bad: "in the middle"},
		"§2.2 partial: LOCAL's block":                  {in: block(0x20, 0x11, four)[:20], bad: "in the middle"},
		"too long":                                     {in: block(0x21, 0x11, four, field(0x04, strings.Repeat("x", Limit-fixed-14))), bad: "4097 bytes"},
		"too long by LOCAL":                            {in: block(0x20, 0x00, strings.Repeat("x", 65535)), bad: "65551 bytes"},
		"a field longer than what is left":             {in: block(0x21, 0x11, four, "\x04\x00\x02x"), bad: "a field of 2 bytes"},
		"a field whose length is cut off":              {in: block(0x21, 0x11, four, "\x04\x00"), bad: "cut off"},
		"§2.2.3 a wrong checksum":                      {in: block(0x21, 0x11, four, field(0x03, "\x00\x00\x00\x00")), bad: "checksum is wrong"},
		"§2.2.3 a checksum of three bytes":             {in: block(0x21, 0x11, four, field(0x03, "\x00\x00\x00")), bad: "a checksum of 3 bytes"},
		"the client is no address":                     {in: block(0x21, 0x11, "\x00\x00\x00\x00"+four[4:]), bad: "no client"},
		"the client is a group":                        {in: block(0x21, 0x11, "\xe0\x00\x00\x01"+four[4:]), bad: "no client"},
		"the client is everybody":                      {in: block(0x21, 0x11, "\xff\xff\xff\xff"+four[4:]), bad: "no client"},
		"the client is no address of IPv4 inside IPv6": {in: block(0x21, 0x21, mapped[:12]+"\x00\x00\x00\x00"+mapped[16:]), bad: "no client"},
		"the client has no port":                       {in: block(0x21, 0x11, four[:8]+"\x00\x00"+four[10:]), bad: "no client"},
	} {
		t.Run(name, func(t *testing.T) {
			const after = "\x16\x03\x01and what follows"
			for kind, r := range map[string]io.Reader{"at once": strings.NewReader(c.in + after), "byte by byte": iotest.OneByteReader(strings.NewReader(c.in + after))} {
				if strings.Contains(name, "partial") {
					r = strings.NewReader(c.in)
				}
				got, err := Read(r)
				if c.bad != "" {
					var refused *Error
					if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.bad) {
						t.Errorf("%s: %v, want one with %q", kind, err, c.bad)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
					t.Errorf("%s: %s", kind, diff)
				}
				if rest, _ := io.ReadAll(r); string(rest) != after {
					t.Errorf("%s: %q is left of what follows", kind, rest)
				}
			}
		})
	}
}

// Two checksums that are both right cannot be written; a second one is refused before it is looked at.
func TestSecondChecksum(t *testing.T) {
	one := summed(block(0x21, 0x11, four, field(0x03, "0000"), field(0x03, "0000")))
	b := []byte(one)
	clear(b[fixed+12+3 : fixed+12+7]) // the first field's value
	binary.BigEndian.PutUint32(b[fixed+12+3:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := Read(bytes.NewReader(b)); err == nil || !strings.Contains(err.Error(), "second") {
		t.Errorf("%v", err)
	}
}

func TestNothingAtAll(t *testing.T) {
	if _, err := Read(strings.NewReader("")); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	broken := errors.New("broken")
	if _, err := Read(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// Whatever a balancer writes by the protocol's text is read as it was meant.
func TestWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, family := 4, byte(0x11)
		if rapid.Bool().Draw(t, "IPv6") {
			size, family = 16, 0x21
		}
		address := rapid.SliceOfN(rapid.Byte(), size, size)
		source, destination := address.Draw(t, "source"), address.Draw(t, "destination")
		source[0] = byte(rapid.IntRange(1, 0xdf).Draw(t, "first")) // neither nobody nor a group
		ports := rapid.Uint16Range(1, 65535)
		from, to := ports.Draw(t, "from"), ports.Draw(t, "to")
		body := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(append(bytes.Clone(source), destination...), from), to)
		for range rapid.IntRange(0, 5).Draw(t, "fields") {
			kind := rapid.Byte().Filter(func(b byte) bool { return b != 0x03 }).Draw(t, "kind")
			body = append(body, field(kind, string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "value")))...)
		}
		header := block(0x21, family, string(body))
		if rapid.Bool().Draw(t, "checksum") {
			header = summed(block(0x21, family, string(body), field(0x03, "0000")))
		}
		got, err := Read(strings.NewReader(header))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := netip.AddrFromSlice(source)
		if got.Local || got.Source != netip.AddrPortFrom(want.Unmap(), from) || got.Destination.Port() != to {
			t.Fatalf("%+v, want %s", got, want)
		}
	})
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"", "PROXY TCP4 192.0.2.7 10.0.0.5 56789 8443\r\n", signature, block(0x20, 0), block(0x21, 0x11, four), block(0x21, 0x21, six),
		block(0x21, 0x21, mapped, field(0x01, "h2")), summed(block(0x21, 0x11, four, field(0x03, "0000"))), block(0x21, 0x31, strings.Repeat("\x00", 216)),
		block(0x21, 0x11, four, "\x04\xff\xff"), block(0x20, 0xff, "x") + "more"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		r := bytes.NewReader(in)
		h, err := Read(r)
		used := len(in) - r.Len()
		if !bytes.Equal(before, in) {
			t.Fatal("the input was changed")
		}
		if used > Limit {
			t.Fatalf("%d bytes were read", used)
		}
		again, failed := Read(iotest.OneByteReader(bytes.NewReader(in)))
		if again != h || (err == nil) != (failed == nil) {
			t.Fatalf("byte by byte it is %+v, %v; at once %+v, %v", again, failed, h, err)
		}
		if err != nil {
			if h != (Header{}) {
				t.Fatalf("refused with %+v", h)
			}
			return
		}
		if used != fixed+int(binary.BigEndian.Uint16(in[14:])) || string(in[:12]) != signature || in[12]>>4 != 2 {
			t.Fatalf("%d bytes were taken of %x", used, in)
		}
		if h.Local {
			if in[12] != 0x20 || h.Source.IsValid() {
				t.Fatalf("%+v of %x", h, in)
			}
			return
		}
		// Written anew without its fields it says the same.
		kind, at := byte(0x11), 12
		if in[13] == 0x21 {
			kind, at = 0x21, 36
		}
		if plain, err := Read(strings.NewReader(block(0x21, kind, string(in[fixed:fixed+at])))); err != nil || plain != h {
			t.Fatalf("%+v is %+v, %v without its fields", h, plain, err)
		}
		if a := h.Source.Addr(); !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			t.Fatalf("%s is no client", h.Source)
		}
	})
}
