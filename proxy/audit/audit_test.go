package audit

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/wardmesh/ward/proxy"
)

const testOrigin = "clinic.test/icu-gw-07"

// testOptions are those of a log in a folder of the test's own.
func testOptions(t testing.TB) Options {
	t.Helper()
	return Options{Dir: filepath.Join(t.TempDir(), "audit"), Origin: testOrigin, MinFree: 1, Retry: time.Hour,
		Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()}
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func newDecision() string { return ulid.MustNew(ulid.Now(), rand.Reader).String() }

var testTime = time.Date(2026, 11, 23, 8, 40, 4, 123456789, time.UTC)

func refusal(decision string) *proxy.Record {
	return &proxy.Record{Stage: proxy.StageRefusal, Time: testTime, Decision: decision, Caller: "spiffe://clinic.test/app/portal",
		Effect: "deny", Cause: proxy.CausePolicy, Detail: "no permit matched"}
}

// mustAdd appends records and waits for each in turn.
func mustAdd(t testing.TB, l *Log, records ...*proxy.Record) {
	t.Helper()
	for _, r := range records {
		receipt, err := l.Append(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := receipt.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// fill makes a log of n refusals, each durable before the next, and closes it; it returns their ids.
func fill(t testing.TB, o Options, n int) []string {
	t.Helper()
	l := mustOpen(t, o)
	var ids []string
	for range n {
		ids = append(ids, newDecision())
		mustAdd(t, l, refusal(ids[len(ids)-1]))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return ids
}

// decisions gives the ids in the log, in order.
func decisions(t testing.TB, dir string) []string {
	t.Helper()
	var ids []string
	for e, err := range Scan(context.Background(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Event != EventResumed {
			ids = append(ids, e.Record.Decision)
		}
	}
	return ids
}

func verifier(t testing.TB, o Options) note.Verifier {
	t.Helper()
	v, err := LoadVerifier(PublicFile(o.Dir))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustVerify(t testing.TB, o Options) *Report {
	t.Helper()
	r, err := Verify(context.Background(), o.Dir, verifier(t, o))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// snapshot gives the content of every file of the log's folder but the lock.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		if e.Name() != lockName {
			all[e.Name()] = readFile(t, filepath.Join(dir, e.Name()))
		}
	}
	return all
}

func restore(t testing.TB, dir string, all map[string]string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range all {
		writeFile(t, filepath.Join(dir, name), content)
	}
}

// asides gives the names of the files that hold torn tails.
func asides(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+tornMark+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func lastSegment(t testing.TB, dir string) segment {
	t.Helper()
	all, err := listSegments(dir)
	if err != nil || len(all) == 0 {
		t.Fatal("no segments", err)
	}
	return all[len(all)-1]
}

// reframe gives the lines of a segment with index and checksum made right again, as a forger would.
func reframe(t testing.TB, first int64, jsons []string) string {
	t.Helper()
	var b []byte
	for i, j := range jsons {
		index := first + int64(max(0, i-1)) // the header has its segment's index
		b = appendFrame(b, []byte(j), frameSum([]byte(j)), index, index)
	}
	return string(b)
}

// jsonOf splits a segment's content into the JSON of its lines.
func jsonOf(t testing.TB, content string) []string {
	t.Helper()
	var all []string
	for _, line := range strings.Split(strings.TrimSuffix(content, "\n"), "\n") {
		f, err := parseFrame([]byte(line))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, string(f.json))
	}
	return all
}
