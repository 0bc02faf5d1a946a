package audit

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/wardmesh/ward/proxy"
)

// fullRecord has a value in every field, so that a field added to Record and not to the encoder is found.
func fullRecord(t testing.TB) proxy.Record {
	t.Helper()
	var r proxy.Record
	fillIn(reflect.ValueOf(&r).Elem())
	r.Schema, r.Time, r.Inputs = proxy.RecordSchema, testTime, json.RawMessage(`{"a":[1,"x"]}`)
	r.Data = json.RawMessage(`{"b":2}`)
	return r
}

func fillIn(v reflect.Value) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(i + 1))
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
			fillIn(f.Elem())
		case reflect.Slice:
			if e := f.Type().Elem(); e.Kind() == reflect.String {
				f.Set(reflect.MakeSlice(f.Type(), 2, 2))
				f.Index(0).SetString("one")
				f.Index(1).SetString("two")
			} else if e.Kind() == reflect.Struct {
				s := reflect.MakeSlice(f.Type(), 2, 2)
				fillIn(s.Index(0))
				fillIn(s.Index(1))
				f.Set(s)
			}
		}
	}
}

func encode(t interface{ Fatal(...any) }, r *proxy.Record) string {
	b, err := appendRecord(nil, r, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRecordIsJSONOfEveryField(t *testing.T) {
	r := fullRecord(t)
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), encode(t, &r)); diff != "" {
		t.Error(diff)
	}
	if want, got := `{"schema":"ward.audit/1","stage":"","time":"2026-11-23T08:40:04.123456789Z"}`, encode(t, &proxy.Record{Time: testTime}); got != want {
		t.Errorf("the empty record is %s, want %s", got, want)
	}
}

// Whatever strings a record holds, it comes back the same, on one line, and a terminal would show all of it.
func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom([]rune("a\"\\/\n\r\t\x00\x1b\x7f\u0085\u202e\u2066\u2028\ufeff\u200dé\U0001f600\U000e0001<&>"))))
		texts := rapid.SliceOfN(text, 1, 3)
		r := proxy.Record{Schema: proxy.RecordSchema, Stage: proxy.Stage(text.Draw(t, "stage")), Decision: text.Draw(t, "decision"),
			Time: time.Unix(rapid.Int64Range(0, 1<<36).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(),
			User: text.Draw(t, "user"), Detail: text.Draw(t, "detail"), Patients: texts.Draw(t, "patients"),
			Interactions: []proxy.Acted{{Kind: text.Draw(t, "kind"), ID: text.Draw(t, "id"), Params: texts.Draw(t, "params")}},
			Micros:       rapid.Int64().Draw(t, "µs"), Complete: rapid.Bool().Draw(t, "complete")}
		inputs, err := json.Marshal(map[string]string{"k": text.Draw(t, "input")})
		if err != nil {
			t.Fatal(err)
		}
		r.Inputs = inputs
		line := encode(t, &r)
		for _, c := range line {
			if !unicode.IsPrint(c) {
				t.Fatalf("%U stands bare in %q", c, line)
			}
		}
		e, err := decode(frame{json: []byte(line)})
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if json.Unmarshal(r.Inputs, &want) != nil || json.Unmarshal(e.Record.Inputs, &got) != nil {
			t.Fatal("inputs are not JSON")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		r.Inputs, e.Record.Inputs = nil, nil
		if diff := cmp.Diff(r, e.Record); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestRecordRefused(t *testing.T) {
	for name, r := range map[string]proxy.Record{
		"inputs cut short":       {Time: testTime, Inputs: json.RawMessage(`{"a":`)},
		"inputs with more":       {Time: testTime, Inputs: json.RawMessage(`{} {}`)},
		"inputs, a key twice":    {Time: testTime, Inputs: json.RawMessage(`{"a":1,"a":2}`)},
		"inputs not UTF-8":       {Time: testTime, Inputs: json.RawMessage("\"\xff\"")},
		"another schema":         {Time: testTime, Schema: "ward.audit/2"},
		"a year beyond RFC 3339": {Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := appendRecord(nil, &r, time.Now); !errors.Is(err, ErrRecord) {
				t.Errorf("got %v, want ErrRecord", err)
			}
		})
	}
}

func TestRecordMends(t *testing.T) {
	pretty := "{\n\t\"a\": [1,\r\n 2],\n\t\"b\": \"\u202e\"\n}"
	line := encode(t, &proxy.Record{Time: testTime, User: "a\xffb", Inputs: json.RawMessage(pretty)})
	if want := `"user":"a\ufffdb","inputs":{"a": [1, 2],"b": "\u202e"}}`; !strings.HasSuffix(line, want) {
		t.Errorf("%s does not end in %s", line, want)
	}
	now := func() time.Time { return testTime }
	b, err := appendRecord(nil, &proxy.Record{}, now)
	if err != nil || !strings.Contains(string(b), "2026-11-23T08:40:04") {
		t.Errorf("a record without a time is %s, %v; want the time of the call", b, err)
	}
}

// Strings are looked through eight bytes at a time; each byte in each place is treated as it is by itself.
func TestStringEveryByte(t *testing.T) {
	for c := range 256 {
		for at := range 17 {
			for _, pad := range []string{" ", "a", "~", "!"} {
				s := strings.Repeat(pad, at) + string([]byte{byte(c)}) + strings.Repeat(pad, 16-at)
				b := appendString(nil, s)
				var got string
				if err := json.Unmarshal(b, &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") {
					t.Fatalf("%q became %s (%v)", s, b, err)
				}
				raw, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(appendRaw(nil, raw), &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") {
					t.Fatalf("%s became %s (%v)", raw, appendRaw(nil, raw), err)
				}
				b = appendRaw(b, raw)
				if bare := strings.ContainsFunc(string(b), func(r rune) bool { return !unicode.IsPrint(r) }); bare {
					t.Fatalf("%q became %s", s, b)
				}
			}
		}
	}
}
