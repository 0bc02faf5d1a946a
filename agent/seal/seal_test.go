package seal_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wardmesh/ward/agent/seal"
)

func newBox(t testing.TB, fill byte) *seal.Box {
	t.Helper()
	b, err := seal.New(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBox(t *testing.T) {
	b := newBox(t, 1)
	for _, plain := range [][]byte{nil, []byte("secret"), make([]byte, seal.MaxPlain)} {
		one, err := b.Seal("a purpose", plain)
		if err != nil {
			t.Fatal(err)
		}
		two, err := b.Seal("a purpose", plain)
		if err != nil || bytes.Equal(one, two) {
			t.Error("the same twice when sealed")
		}
		if len(plain) > 0 && bytes.Contains(one, plain) {
			t.Error("what was sealed can be read")
		}
		if got, err := b.Open("a purpose", one); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("Open = %d bytes, %v", len(got), err)
		}
	}
	sealed, err := b.Seal("a purpose", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		want := seal.ErrTampered
		switch {
		case i < 9:
			want = seal.ErrMalformed
		case i < 25:
			want = seal.ErrForeign
		}
		if _, err := b.Open("a purpose", bad); !errors.Is(err, want) {
			t.Errorf("byte %d changed: %v, want %v", i, err, want)
		}
	}
	for name, c := range map[string]struct {
		box     *seal.Box
		purpose string
		sealed  []byte
		want    error
	}{
		"for another purpose":        {b, "another purpose", sealed, seal.ErrTampered},
		"for a beginning of it":      {b, "a purpos", sealed, seal.ErrTampered},
		"with another key":           {newBox(t, 2), "a purpose", sealed, seal.ErrForeign},
		"cut":                        {b, "a purpose", sealed[:len(sealed)-1], seal.ErrTampered},
		"cut to its head":            {b, "a purpose", sealed[:40], seal.ErrMalformed},
		"with more after it":         {b, "a purpose", append(bytes.Clone(sealed), 0), seal.ErrTampered},
		"with far too much after it": {b, "a purpose", append(bytes.Clone(sealed), make([]byte, 2*seal.MaxPlain)...), seal.ErrMalformed},
		"empty":                      {b, "a purpose", nil, seal.ErrMalformed},
	} {
		if _, err := c.box.Open(c.purpose, c.sealed); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := b.Seal("", nil); err == nil {
		t.Error("sealed for no purpose")
	}
	if _, err := b.Seal("a purpose", make([]byte, seal.MaxPlain+1)); err == nil {
		t.Error("sealed too much")
	}
	if _, err := seal.New(make([]byte, 31)); err == nil {
		t.Error("a short secret is accepted")
	}
}

// FuzzOpen: nothing opens but what was sealed.
func FuzzOpen(f *testing.F) {
	b := newBox(f, 1)
	sealed, err := b.Seal("a purpose", []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:60])
	f.Add([]byte("WARDSEAL\x01"))
	f.Fuzz(func(t *testing.T, text []byte) {
		plain, err := b.Open("a purpose", text)
		if err == nil && string(plain) != "secret" {
			t.Fatal("something else opens")
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Fatal("the error quotes")
		}
	})
}

func TestCredential(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, size int, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, bytes.Repeat([]byte("k"), size), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	put("good", 32, 0o400)
	put("group", 64, 0o440)
	put("short", 31, 0o400)
	put("empty", 0, 0o400)
	put("huge", 1<<20+1, 0o400)
	put("open", 32, 0o444)
	if err := os.Symlink("good", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"good", "group"} {
		one, err := seal.OpenCredential(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := one.Seal("a purpose", []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("CREDENTIALS_DIRECTORY", dir)
		two, err := seal.OpenCredential("", name)
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := two.Open("a purpose", sealed); err != nil || string(plain) != "secret" {
			t.Errorf("Open = %q, %v", plain, err)
		}
	}
	for name, want := range map[string]error{"short": seal.ErrUnavailable, "empty": seal.ErrUnavailable, "huge": seal.ErrUnavailable, "open": seal.ErrUnsafe,
		"link": seal.ErrUnavailable, "missing": seal.ErrUnavailable, "../good": nil, "..": nil, "": nil} {
		_, err := seal.OpenCredential(dir, name)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "kkk") {
			t.Errorf("%q: the error quotes the credential", name)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := seal.OpenCredential("", "good"); !errors.Is(err, seal.ErrUnavailable) || !strings.Contains(err.Error(), "LoadCredentialEncrypted=good") {
		t.Errorf("without credentials: %v", err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "kek")
	one, err := seal.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || info.Size() != 32 {
		t.Errorf("%v, %v", info, err)
	}
	sealed, err := one.Seal("a purpose", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := seal.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := two.Open("a purpose", sealed); err != nil || string(plain) != "secret" {
		t.Errorf("Open = %q, %v", plain, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.OpenFile(path); !errors.Is(err, seal.ErrUnsafe) {
		t.Errorf("readable by a group: %v", err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 16)); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.OpenFile(path); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("cut: %v", err)
	}
}
