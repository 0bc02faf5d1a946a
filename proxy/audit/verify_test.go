package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"github.com/wardmesh/ward/proxy"
)

func TestVerifyReports(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize = 1 << 10
	l := mustOpen(t, o)
	at := func(s int) time.Time { return testTime.Add(time.Duration(s) * time.Second) }
	call := func(stage proxy.Stage, id string, s int) *proxy.Record {
		return &proxy.Record{Stage: stage, Decision: id, Time: at(s), Effect: "allow", Caller: "spiffe://clinic.test/app/portal"}
	}
	mustAdd(t, l, call(proxy.StageIntent, "one", 0), call(proxy.StageIntent, "two", 1), call(proxy.StageOutcome, "one", 2),
		call(proxy.StageIntent, "three", 3), call(proxy.StageRefusal, "four", 4), call(proxy.StageOutcome, "three", 5),
		call(proxy.StageIntent, "five", 6), call(proxy.StageEvent, "", 7))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got := mustVerify(t, o)
	if got.Segments < 2 || got.Checkpoints < int64(got.Segments) || got.Bytes == 0 {
		t.Errorf("the report is %+v", got)
	}
	got.Segments, got.Checkpoints, got.Bytes = 0, 0, 0
	want := &Report{Origin: testOrigin, Records: 8, Signed: 8, Root: got.Root, First: at(0), Last: at(7),
		Stages:   map[proxy.Stage]int64{proxy.StageIntent: 4, proxy.StageOutcome: 2, proxy.StageRefusal: 1, proxy.StageEvent: 1},
		Presumed: []Intent{{1, "two", at(1)}, {6, "five", at(6)}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	last, ok, _, err := lastCheckpoint(o.Dir, testOrigin, note.VerifierList(verifier(t, o)))
	if err != nil || !ok || last.Hash != got.Root {
		t.Errorf("the last checkpoint has the root %v (%v), the report %v", last.Hash, err, got.Root)
	}
}

// Whatever is done to a signed log by someone without its key is found and named.
func TestVerifyFinds(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize, o.CheckpointRecords = 2<<10, 5
	fill(t, o, 40)
	whole := snapshot(t, o.Dir)
	segments, err := listSegments(o.Dir)
	if err != nil || len(segments) < 4 {
		t.Fatal(segments, err)
	}
	key := verifier(t, o)
	name := func(i int) string { return filepath.Base(segments[i].path) }
	lines := func(i int) []string { return strings.SplitAfter(strings.TrimSuffix(whole[name(i)], "\n"), "\n") }
	forge := func(all map[string]string, i int, change func([]string) []string) {
		all[name(i)] = reframe(t, segments[i].first, change(jsonOf(t, all[name(i)])))
	}
	end := len(segments) - 1
	for _, c := range []struct {
		name   string
		change func(all map[string]string)
		want   string
	}{
		{"a byte altered in the first segment", func(all map[string]string) {
			all[name(0)] = strings.Replace(all[name(0)], "portal", "p0rtal", 1)
		}, "checksum"},
		{"a record altered, its line made right", func(all map[string]string) {
			forge(all, 1, func(j []string) []string { j[2] = strings.Replace(j[2], "portal", "p0rtal", 1); return j })
		}, "this record was altered"},
		{"the same, and the hashes gone", func(all map[string]string) {
			forge(all, 1, func(j []string) []string { j[2] = strings.Replace(j[2], "portal", "p0rtal", 1); return j })
			delete(all, hashesName)
		}, "were altered"},
		{"a record removed", func(all map[string]string) {
			all[name(1)] = strings.Join(slices.Concat(lines(1)[:2], lines(1)[3:]), "") + "\n"
		}, "stands where record"},
		{"a record removed, the lines made right", func(all map[string]string) {
			forge(all, 1, func(j []string) []string { return slices.Delete(j, 2, 3) })
		}, "altered"},
		{"the last record removed, the log shortened", func(all map[string]string) {
			all[name(end)] = strings.Join(lines(end)[:len(lines(end))-1], "")
		}, "but 40 records are signed"},
		{"two records swapped, the lines made right", func(all map[string]string) {
			forge(all, 1, func(j []string) []string { j[2], j[3] = j[3], j[2]; return j })
		}, "this record was altered"},
		{"a record added, the lines made right", func(all map[string]string) {
			forge(all, 1, func(j []string) []string { return slices.Insert(j, 2, j[3]) })
		}, "altered"},
		{"cut short within a record", func(all map[string]string) { all[name(end)] = all[name(end)][:len(all[name(end)])-30] }, "but 40 records are signed"},
		{"an old segment cut short", func(all map[string]string) { all[name(1)] = all[name(1)][:len(all[name(1)])-30] }, "are no record"},
		{"an old segment emptied", func(all map[string]string) { all[name(1)] = "" }, "no header"},
		{"the first segment removed", func(all map[string]string) { delete(all, name(0)) }, "first segment is missing"},
		{"a segment removed", func(all map[string]string) { delete(all, name(2)) }, "the segment is missing"},
		{"the last segment removed", func(all map[string]string) { delete(all, name(end)) }, "are signed"},
		{"the header's root altered", func(all map[string]string) {
			forge(all, 2, func(j []string) []string { j[0] = strings.Replace(j[0], `"root":"`, `"root":"A`, 1); return j })
		}, "header"},
		{"the segment of another log", func(all map[string]string) {
			forge(all, 2, func(j []string) []string { j[0] = strings.Replace(j[0], "icu", "ccu", 1); return j })
		}, "it is of the log"},
		{"a record that is no record, signed or not", func(all map[string]string) {
			forge(all, 2, func(j []string) []string { j[1] = `{"schema":"other"}`; return j })
		}, "not one of ward.audit/1"},
		{"the checkpoints removed", func(all map[string]string) { delete(all, checkpointsName) }, "no checkpoint"},
		{"a byte altered in a checkpoint", func(all map[string]string) {
			all[checkpointsName] = strings.Replace(all[checkpointsName], "clinic.test", "clinic.Test", 1)
		}, "checksum"},
		{"two checkpoints swapped", func(all map[string]string) {
			l := strings.SplitAfter(all[checkpointsName], "\n")
			l[1], l[2] = l[2], l[1]
			all[checkpointsName] = strings.Join(l, "")
		}, "follows one over"},
		{"all signed again with another key", func(all map[string]string) {
			secret, public, err := note.GenerateKey(rand.Reader, testOrigin)
			if err != nil {
				t.Fatal(err)
			}
			signer, _ := note.NewSigner(secret)
			v, _ := note.NewVerifier(public)
			var forged []byte
			for _, l := range strings.SplitAfter(strings.TrimSuffix(all[checkpointsName], "\n"), "\n") {
				f, err := parseFrame([]byte(strings.TrimSuffix(l, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				p, err := parseCheckpoint(f, testOrigin, note.VerifierList(key))
				if err != nil {
					t.Fatal(err)
				}
				line, err := signCheckpoint(&Key{Signer: signer, Verifier: v}, testOrigin, p.Tree, testTime)
				if err != nil {
					t.Fatal(err)
				}
				forged = append(forged, line...)
			}
			all[checkpointsName] = string(forged)
		}, "another key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := maps.Clone(whole)
			c.change(all)
			restore(t, o.Dir, all)
			r, err := Verify(context.Background(), o.Dir, key)
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Verify gave %v, want %s", err, c.want)
			}
			if r == nil {
				t.Error("there is no report")
			}
			if diff := cmp.Diff(all, snapshot(t, o.Dir)); diff != "" {
				t.Errorf("Verify changed the folder:\n%s", diff)
			}
		})
	}
	restore(t, o.Dir, whole)
	if r, err := Verify(context.Background(), o.Dir, key); err != nil || r.Records != 40 {
		t.Errorf("the log as it was: %+v, %v", r, err)
	}
}

// Verify can run beside the writer, whatever it is doing.
func TestVerifyBesideWriter(t *testing.T) {
	o := testOptions(t)
	o.SegmentSize, o.CheckpointRecords = 4<<10, 7
	l := mustOpen(t, o)
	key := verifier(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if r, err := l.Append(refusal(newDecision())); err != nil || r.Wait(context.Background()) != nil {
				t.Error("the writer failed")
				return
			}
		}
	}()
	for seen := int64(0); seen < 300; {
		r, err := Verify(context.Background(), o.Dir, key)
		if err != nil {
			t.Error(err)
			break
		}
		seen = r.Records
	}
	cancel()
	<-done
}
