package seal_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/agent/seal"
)

// extend changes PCR 7, as another boot loader would.
func extend(t *testing.T, socket string) {
	t.Helper()
	// TPM2_PCR_Extend (TPM 2.0 part 3 §22.2) of PCR 7, with the empty password, by one SHA-256 digest.
	digest := sha256.Sum256([]byte("another boot loader"))
	c := []byte{0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x82, 0, 0, 0, 7, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0b}
	c = append(c, digest[:]...)
	binary.BigEndian.PutUint32(c[2:], uint32(len(c)))
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(c); err != nil {
		t.Fatal(err)
	}
	var r [10]byte
	if _, err := io.ReadFull(conn, r[:]); err != nil || binary.BigEndian.Uint32(r[6:]) != 0 {
		t.Fatalf("PCR_Extend: %x, %v", r, err)
	}
}

func openTPM(t *testing.T, o seal.TPMOptions) *seal.Box {
	t.Helper()
	b, err := seal.OpenTPM(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTPM(t *testing.T) {
	for _, secureBoot := range []bool{false, true} {
		t.Run(map[bool]string{false: "bound to the machine", true: "bound to secure boot as well"}[secureBoot], func(t *testing.T) {
			base := t.TempDir()
			state := filepath.Join(base, "tpm")
			o := seal.TPMOptions{Path: filepath.Join(base, "state", "kek.tpm"), SecureBoot: secureBoot}
			var stop func()
			o.Device, stop = softwareTPM(t, state)
			sealed, err := openTPM(t, o).Seal("a purpose", []byte("secret"))
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(o.Path); err != nil || info.Mode() != 0o600 {
				t.Errorf("the sealed key: %v, %v", info.Mode(), err)
			}
			opens := func(when string) {
				t.Helper()
				if plain, err := openTPM(t, o).Open("a purpose", sealed); err != nil || string(plain) != "secret" {
					t.Fatalf("%s: Open = %q, %v", when, plain, err)
				}
			}
			for range 5 { // sessions and handles are given back: the TPM has room for three
				opens("again")
			}
			stop()
			if _, err := seal.OpenTPM(t.Context(), o); !errors.Is(err, seal.ErrUnavailable) {
				t.Errorf("with the TPM gone: %v", err)
			}
			o.Device, stop = softwareTPM(t, state)
			opens("after a boot")

			o.SecureBoot = !o.SecureBoot // as around a firmware update
			opens("with another choice")
			o.SecureBoot = !o.SecureBoot
			opens("with the first choice again")

			extend(t, o.Device)
			if secureBoot {
				if _, err := seal.OpenTPM(t.Context(), o); !errors.Is(err, seal.ErrUnavailable) || !strings.Contains(err.Error(), "PCR 7") {
					t.Errorf("with another secure boot state: %v", err)
				}
			} else {
				opens("with another secure boot state")
			}
			stop()

			if secureBoot { // switched off while it opened, it opens in any state
				o.Device, stop = softwareTPM(t, state)
				o.SecureBoot = false
				opens("after switching the bond off")
				extend(t, o.Device)
				opens("without the bond")
				stop()
			}

			o.Device, _ = softwareTPM(t, filepath.Join(base, "another tpm"))
			if _, err := seal.OpenTPM(t.Context(), o); !errors.Is(err, seal.ErrForeign) {
				t.Errorf("with another TPM: %v", err)
			}
		})
	}
}

// TestTPMFile: the file of the sealed key is not believed.
func TestTPMFile(t *testing.T) {
	base := t.TempDir()
	o := seal.TPMOptions{Path: filepath.Join(base, "state", "kek.tpm"), SecureBoot: true}
	o.Device, _ = softwareTPM(t, filepath.Join(base, "tpm"))
	openTPM(t, o)
	good, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		do   func([]byte) []byte
		want error
	}{
		"empty":                           {func([]byte) []byte { return nil }, seal.ErrMalformed},
		"cut":                             {func(b []byte) []byte { return b[:len(b)-1] }, seal.ErrMalformed},
		"with more":                       {func(b []byte) []byte { return append(b, 0) }, seal.ErrMalformed},
		"of another version":              {func(b []byte) []byte { b[7] = 2; return b }, seal.ErrMalformed},
		"huge":                            {func([]byte) []byte { return make([]byte, 1<<20) }, seal.ErrMalformed},
		"changed":                         {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, seal.ErrForeign},
		"said not to be bound to booting": {func(b []byte) []byte { b[8] = 0; return b }, seal.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(o.Path, c.do(append([]byte(nil), good...)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := seal.OpenTPM(t.Context(), o); !errors.Is(err, c.want) && !(name == "huge" && errors.Is(err, seal.ErrUnavailable)) {
				t.Errorf("OpenTPM = %v, want %v", err, c.want)
			}
		})
	}
	t.Run("readable by others", func(t *testing.T) {
		if err := errors.Join(os.WriteFile(o.Path, good, 0o600), os.Chmod(o.Path, 0o644)); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.OpenTPM(t.Context(), o); !errors.Is(err, seal.ErrUnsafe) {
			t.Errorf("OpenTPM = %v", err)
		}
	})
}

func BenchmarkOpenTPM(b *testing.B) {
	base := b.TempDir()
	o := seal.TPMOptions{Path: filepath.Join(base, "state", "kek.tpm")}
	o.Device, _ = softwareTPM(b, filepath.Join(base, "tpm"))
	for b.Loop() {
		if _, err := seal.OpenTPM(context.Background(), o); err != nil {
			b.Fatal(err)
		}
	}
}

// TestTPMBroken: what answers for a TPM may answer anything, or nothing.
func TestTPMBroken(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":          nil,
		"a huge length":    {0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"a short length":   {0x80, 1, 0, 0, 0, 1, 0, 0, 0, 0},
		"success, and end": {0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0},
		"an error":         {0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Read(make([]byte, 4096))
					_, _ = conn.Write(answer)
					conn.Close()
				}
			}()
			_, err = seal.OpenTPM(context.Background(), seal.TPMOptions{Device: "tcp:" + listener.Addr().String(), Path: filepath.Join(dir, "kek.tpm")})
			if !errors.Is(err, seal.ErrUnavailable) {
				t.Errorf("OpenTPM = %v", err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	for _, device := range []string{"tcp:192.0.2.1:2321", "tcp:localhost:2321", "/dev/null/tpm", t.TempDir()} {
		if _, err := seal.OpenTPM(t.Context(), seal.TPMOptions{Device: device, Path: filepath.Join(t.TempDir(), "kek.tpm")}); !errors.Is(err, seal.ErrUnavailable) {
			t.Errorf("%s: %v", device, err)
		}
	}
}

// FuzzBlob: any file is refused, or says the same when it is written again.
func FuzzBlob(f *testing.F) {
	f.Add([]byte("WARDTPM\x01\x00\x00\x01a\x00\x01b"))
	f.Add([]byte("WARDTPM\x01\x01\x00\x02ab\x00\x01b"))
	f.Add([]byte("WARDTPM\x02\x00\x00\x01a\x00\x01b"))
	f.Add([]byte("WARDTPM\x01\x00\xff\xff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		again, err := seal.Reblob(text)
		if err != nil {
			if !errors.Is(err, seal.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if diff := cmp.Diff(text, again); diff != "" {
			t.Error(diff)
		}
	})
}
