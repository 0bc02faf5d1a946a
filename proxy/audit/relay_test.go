package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/proxy"
)

// relay puts a connection between a process that has been replaced and who appends for it.
func relay(t testing.TB, to Lines) (s *Sender, hurry chan struct{}, received <-chan error) {
	t.Helper()
	near, far := net.Pipe()
	hurry, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Receive(far, to, hurry) }()
	s = NewSender(near)
	t.Cleanup(func() { _ = near.Close() })
	return s, hurry, done
}

// Records of a process that has been replaced stand in the log like any other, byte by byte, and each is durable when its
// receipt says so; also over a process in between, that has been replaced itself.
func TestRelay(t *testing.T) {
	for _, hops := range []int{1, 2} {
		o := testOptions(t)
		trail := mustOpenTrail(t, o, "")
		var to Lines = trail
		var senders []*Sender
		var ends []<-chan error
		for range hops {
			s, _, end := relay(t, to)
			senders, ends = append(senders, s), append(ends, end)
			to = s
		}
		s := senders[hops-1]
		want := map[string]bool{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 25 {
					id := newDecision()
					receipt, err := s.Append(refusal(id))
					if err == nil {
						err = receipt.Wait(context.Background())
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					want[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if n := trail.Status().First.Records; n != 200 {
			t.Errorf("%d records are durable, 200 were waited for", n)
		}
		// Nobody waits for this one: the end of the sender does.
		last := newDecision()
		if _, err := s.Append(refusal(last)); err != nil {
			t.Fatal(err)
		}
		want[last] = true
		for i := range hops {
			if err := senders[hops-1-i].Close(context.Background()); err != nil {
				t.Error(err)
			}
			if err := <-ends[hops-1-i]; err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Append(refusal(last)); !errors.Is(err, ErrFailed) {
			t.Errorf("after its end it takes records: %v", err)
		}
		if err := trail.Close(); err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, id := range decisions(t, o.Dir) {
			got[id] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		mustVerify(t, o)
		direct, err := appendRecord(nil, refusal(last), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(readFile(t, lastSegment(t, o.Dir).path), string(direct)+" 200 ") {
			t.Error("the record is not what its process has encoded")
		}
	}
}

// stuck takes records, of which none becomes durable.
type stuck struct{ came chan struct{} }

func (s stuck) AppendLine([]byte) (proxy.Receipt, error) {
	s.came <- struct{}{}
	return never{}, nil
}

type never struct{}

func (never) Wait(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// With the process that keeps the log go the records that it has not answered for: nothing counts as durable.
func TestRelayBreaks(t *testing.T) {
	near, far := net.Pipe()
	came := make(chan struct{}, 1)
	r := &receiver{conn: far, order: make(chan arrived, 1)}
	go func() { _ = r.read(stuck{came}) }()
	s := NewSender(near)
	receipt, err := s.Append(refusal(newDecision()))
	if err != nil {
		t.Fatal(err)
	}
	<-came
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := receipt.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("it waits for what never comes: %v", err)
	}
	_ = far.Close()
	if err := receipt.Wait(context.Background()); !errors.Is(err, ErrFailed) {
		t.Errorf("a record that nobody has made durable: %v", err)
	}
	if _, err := s.Append(refusal(newDecision())); !errors.Is(err, ErrFailed) {
		t.Errorf("a record that goes nowhere: %v", err)
	}
	<-s.Hurry()
	if err := s.Close(context.Background()); !errors.Is(err, ErrFailed) {
		t.Errorf("a sender that lost a record closes with %v", err)
	}
}

// Why a record was not taken arrives as what it is, and a successor that ends has its predecessor end.
func TestRelayRefuses(t *testing.T) {
	trail := mustOpenTrail(t, testOptions(t), "")
	s, hurry, _ := relay(t, trail)
	if _, err := s.Append(&proxy.Record{Schema: "other/1"}); !errors.Is(err, ErrRecord) {
		t.Errorf("not a record: %v", err)
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	receipt, err := s.Append(refusal(newDecision()))
	if err != nil {
		t.Fatal(err)
	}
	if err := receipt.Wait(context.Background()); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), ErrClosed.Error()) {
		t.Errorf("a log that is closed: %v", err)
	}
	close(hurry)
	<-s.Hurry()
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// notLines is what must never become a line of the log.
func notLines() []string {
	const good = `{"schema":"ward.audit/1","stage":"event","time":"2026-11-23T08:40:04Z"}`
	return []string{"", "{}", "null", `{"schema":"ward.audit/2","stage":"event"}`, good + "\n", "\n" + good, strings.Replace(good, ",", ",\n", 1), good + " 1 2 deadbeef\n" + good,
		good + good, good + "}", good[:len(good)-1], `{"schema":"ward.audit/1","schema":"ward.audit/1"}`, `{"schema":"ward.audit/1","stage":"` + "\xff" + `"}`,
		`{"schema":"ward.audit/1","detail":"` + strings.Repeat("x", MaxRecord) + `"}`}
}

func TestDecodeLine(t *testing.T) {
	for _, line := range notLines() {
		if r, err := decodeLine([]byte(line)); !errors.Is(err, ErrRecord) {
			t.Errorf("%.80q is %+v, %v", line, r, err)
		}
	}
	// A field that only another version knows stays.
	if r, err := decodeLine([]byte(`{"schema":"ward.audit/1","stage":"event","new":[1]}`)); err != nil || r.Stage != proxy.StageEvent {
		t.Errorf("%+v %v", r, err)
	}
}

// Whatever line is accepted from another process can be read back from the log as exactly one record.
func FuzzDecodeLine(f *testing.F) {
	line, err := appendRecord(nil, refusal("01J"), time.Now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	for _, line := range notLines()[:13] {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if _, err := decodeLine(line); err != nil {
			return
		}
		framed := appendFrame(nil, line, frameSum(line), 7, 5)
		fr, err := parseFrame(framed[:len(framed)-1])
		if err != nil || string(fr.json) != string(line) || fr.index != 7 || framed[len(framed)-1] != '\n' {
			t.Fatalf("%q in the log is %+v, %v", line, fr, err)
		}
		if _, err := decode(fr); err != nil {
			t.Fatalf("%q cannot be read: %v", line, err)
		}
	})
}

// Whatever arrives on the connection, lines are what it says or it ends.
func FuzzReceive(f *testing.F) {
	line, err := appendRecord(nil, refusal("01J"), time.Now)
	if err != nil {
		f.Fatal(err)
	}
	frame := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(len(line))), 1)
	f.Add(append(frame, line...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		near, far := net.Pipe()
		got := &taken{}
		done := make(chan error, 1)
		go func() { done <- Receive(far, got, make(chan struct{})) }()
		go func() {
			buf := make([]byte, 512)
			for {
				if _, err := near.Read(buf); err != nil {
					return
				}
			}
		}()
		_, _ = near.Write(sent)
		_ = near.Close()
		<-done
		var total int
		for _, l := range got.all {
			total += 12 + len(l)
		}
		if total > len(sent) {
			t.Fatalf("%d bytes became %d", len(sent), total)
		}
	})
}

// taken remembers what is appended.
type taken struct{ all [][]byte }

func (l *taken) AppendLine(line []byte) (proxy.Receipt, error) {
	l.all = append(l.all, line)
	return counted{}, nil
}
