package audit

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/wardmesh/ward/proxy"
)

// childDir, when it is set, makes this binary the process that TestKilled kills.
const childDir = "WARD_AUDIT_TEST_DIR"

// childMax, when it is set, is that process's Options.MaxSize.
const childMax = "WARD_AUDIT_TEST_MAX"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, appendForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// appendForever appends from many goroutines, and prints the id of each decision once it is durable.
func appendForever(dir string) error {
	most, _ := strconv.ParseInt(os.Getenv(childMax), 10, 64)
	l, err := Open(context.Background(), Options{Dir: dir, Origin: testOrigin, SegmentSize: 64 << 10, CheckpointRecords: 40, MinFree: 1,
		Reserve: 256 << 10, MaxSize: most,
		Logger: zap.NewNop(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		return err
	}
	failed := make(chan error)
	for i := range 16 {
		go func() {
			for {
				id := newDecision()
				intent := refusal(id)
				intent.Stage, intent.Detail = proxy.StageIntent, strings.Repeat("x", i*100)
				receipt, err := l.Append(intent)
				if err == nil {
					err = receipt.Wait(context.Background())
				}
				if err == nil {
					_, err = fmt.Println(id)
				}
				if err == nil {
					_, err = l.Append(&proxy.Record{Stage: proxy.StageOutcome, Time: testTime, Decision: id})
				}
				if err != nil {
					failed <- err
				}
			}
		}()
	}
	return <-failed
}

// Killed at any moment under load, the log holds every record that anyone was told is durable, and it is whole.
func TestKilled(t *testing.T) {
	const kills = 25
	o := testOptions(t)
	answered := map[string]bool{}
	rnd := rand.New(rand.NewPCG(3, 4))
	torn, seen := 0, int64(0)
	for range kills {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+o.Dir)
		var stderr strings.Builder
		child.Stderr = &stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var kill sync.Once
		fresh := map[string]bool{}
		left := 1 + rnd.IntN(150)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			answered[lines.Text()], fresh[lines.Text()] = true, true
			if left--; left <= 0 {
				kill.Do(func() { child.Process.Kill() })
			}
		}
		_ = child.Wait()
		if stderr.Len() > 0 {
			t.Fatal(stderr.String())
		}

		l := mustOpen(t, again(o))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		report := mustVerify(t, o)
		if report.Signed != report.Records || report.Unfinished != 0 {
			t.Fatalf("the report is %+v", report)
		}
		torn = len(report.Aside)
		for e, err := range Scan(context.Background(), o.Dir, seen) {
			if err != nil {
				t.Fatal(err)
			}
			delete(fresh, e.Record.Decision)
		}
		if len(fresh) > 0 {
			t.Fatalf("answered, and not in the log: %v", slices.Collect(maps.Keys(fresh)))
		}
		seen = report.Records
	}
	found := map[string]bool{}
	for _, id := range decisions(t, o.Dir) {
		found[id] = true
	}
	for id := range answered {
		if !found[id] {
			t.Fatalf("%s was answered and is not in the log", id)
		}
	}
	t.Logf("%d kills, %d answered calls, none lost; %d torn tails moved aside", kills, len(answered), torn)
}

// Killed at any moment while old segments are removed, the log goes on, and proves what is left of it.
func TestKilledWhileRemoving(t *testing.T) {
	o := testOptions(t)
	begin := int64(0)
	for range 8 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+o.Dir, childMax+"=20000")
		var stderr strings.Builder
		child.Stderr = &stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		last := ""
		for lines, n := bufio.NewScanner(out), 0; lines.Scan(); {
			last = lines.Text()
			if n++; n == 60 {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait()
		if stderr.Len() > 0 {
			t.Fatal(stderr.String())
		}
		if err := mustOpen(t, again(o)).Close(); err != nil {
			t.Fatal(err)
		}
		report := mustVerify(t, o)
		if report.Begin < begin {
			t.Fatalf("the log began with record %d, and now with %d", begin, report.Begin)
		}
		begin = report.Begin
		if found, err := Find(context.Background(), o.Dir, last); err != nil || len(found) == 0 {
			t.Fatalf("%s was durable and is gone (%v)", last, err)
		}
	}
	if begin == 0 {
		t.Error("nothing was removed")
	}
}
