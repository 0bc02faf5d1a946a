package token

import (
	"strings"
	"testing"

	"github.com/wardmesh/ward/proxy"
)

func TestBearer(t *testing.T) {
	tests := []struct {
		name   string
		values []string
		token  string
		cause  proxy.Cause
	}{
		{"RFC 6750 2.1", []string{"Bearer mF_9.B5f-4.1JqM"}, "mF_9.B5f-4.1JqM", ""},
		{"RFC 6750 2.1 b64token", []string{"Bearer aZ09-._~+/=="}, "aZ09-._~+/==", ""},
		{"RFC 6750 2.1 several spaces", []string{"Bearer   a.b.c"}, "a.b.c", ""},
		{"RFC 9110 11.1 scheme in any case", []string{"bEARER a.b.c"}, "a.b.c", ""},
		{"none", nil, "", proxy.CauseTokenMissing},
		{"RFC 9110 5.3 two fields", []string{"Bearer a.b.c", "Bearer a.b.c"}, "", proxy.CauseTokenMalformed},
		{"empty field", []string{""}, "", proxy.CauseTokenMalformed},
		{"scheme alone", []string{"Bearer"}, "", proxy.CauseTokenMalformed},
		{"scheme and space", []string{"Bearer "}, "", proxy.CauseTokenMalformed},
		{"basic", []string{"Basic YTpi"}, "", proxy.CauseTokenMalformed},
		{"RFC 9449 7.1 DPoP", []string{"DPoP a.b.c"}, "", proxy.CauseTokenMalformed},
		{"token without scheme", []string{"a.b.c"}, "", proxy.CauseTokenMalformed},
		{"list", []string{"Bearer a.b.c, Bearer d.e.f"}, "", proxy.CauseTokenMalformed},
		{"list without spaces", []string{"Bearer a.b.c,d.e.f"}, "", proxy.CauseTokenMalformed},
		{"two tokens", []string{"Bearer a.b.c d.e.f"}, "", proxy.CauseTokenMalformed},
		{"trailing space", []string{"Bearer a.b.c "}, "", proxy.CauseTokenMalformed},
		{"leading space", []string{" Bearer a.b.c"}, "", proxy.CauseTokenMalformed},
		{"tab", []string{"Bearer\ta.b.c"}, "", proxy.CauseTokenMalformed},
		{"padding inside", []string{"Bearer a=b"}, "", proxy.CauseTokenMalformed},
		{"padding alone", []string{"Bearer =="}, "", proxy.CauseTokenMalformed},
		{"line break", []string{"Bearer a.b.c\r\nX: y"}, "", proxy.CauseTokenMalformed},
		{"NUL", []string{"Bearer a.b.c\x00"}, "", proxy.CauseTokenMalformed},
		{"beyond ASCII", []string{"Bearer a.b.é"}, "", proxy.CauseTokenMalformed},
		{"too long", []string{"Bearer " + strings.Repeat("a", MaxSize+1)}, "", proxy.CauseTokenMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Bearer(tt.values)
			if tt.cause != "" {
				wantRefusal(t, err, tt.cause)
				return
			}
			if err != nil || got != tt.token {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer a.b.c", "bearer  x", "Basic YTpi", "Bearer", "Bearer a,b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := Bearer([]string{value})
		if err != nil {
			if got != "" {
				t.Error("a token beside an error")
			}
			if r := refusal(t, err); len(value) > 40 && strings.Contains(r.Error(), value) {
				t.Error("the refusal repeats the field")
			}
			return
		}
		if !strings.HasSuffix(value, got) || !strings.EqualFold(value[:7], "bearer ") || strings.ContainsAny(got, ", \t\r\n\x00") {
			t.Errorf("%q gave %q", value, got)
		}
	})
}
