package main

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{4, 1}, spread{2.5, 1, 4}},
		{[]float64{9, 1, 5}, spread{5, 1, 9}},
		{[]float64{1, 100, 2, 3}, spread{2.5, 1, 100}},
	} {
		if got := spreadOf(c.of); got != c.want {
			t.Errorf("of %v: %v, not %v", c.of, got, c.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for _, c := range []struct {
		of    []time.Duration
		share float64
		want  time.Duration
	}{
		{nil, .5, 0}, {hundred[:1], .99, 100}, {hundred, .5, 50}, {hundred, .99, 99}, {hundred, .991, 100}, {hundred, 1, 100}, {hundred, 0, 1},
	} {
		if got := quantile(c.of, c.share); got != c.want {
			t.Errorf("%v of %d: %d, not %d", c.share, len(c.of), got, c.want)
		}
	}
}

// A server stalls for a second while calls become due every 100 ms: they wait too, and their delays count from when they
// were to be sent.
func TestDelaysCountFromWhenACallWasDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, server := net.Pipe()
		go func() {
			defer func() { _ = server.Close() }()
			for i, buf := 0, make([]byte, 64); ; i++ {
				if _, err := server.Read(buf); err != nil {
					return
				}
				if i == 0 {
					time.Sleep(time.Second)
				}
				fmt.Fprint(server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}()
		l := &load{errand: errand{Request: []byte("GET / HTTP/1.1\r\n\r\n")}}
		s := schedule{start: time.Now(), every: 100 * time.Millisecond}
		n := &lane{caller: newCaller(app), wake: make(chan struct{}, 1)}
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.answers(l, s)
		}()
		for i := range 3 {
			time.Sleep(time.Until(s.at(i)))
			n.due(l, i)
		}
		time.Sleep(2 * time.Second)
		n.due(l, 21) // long after: it waits for nobody
		n.over()
		<-done
		_ = app.Close()
		want := []time.Duration{time.Second, 900 * time.Millisecond, 800 * time.Millisecond, 2200*time.Millisecond - 2100*time.Millisecond}
		if diff := cmp.Diff(want, n.delays); diff != "" || l.bad.Load() != 0 {
			t.Errorf("%d failed (%s); delays (-want +got):\n%s", l.bad.Load(), l.why, diff)
		}
	})
}

func TestProcessTimes(t *testing.T) {
	const line = "4242 (a name) with ) in it) S 1 4200 4200 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 5 0 1 2 3"
	got, err := parseStat([]byte(line))
	if want := (stat{pid: 4242, group: 4200, cpu: 3 * time.Second}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1", "x (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14", "1 (x) S 1 2 3 4 5 6 7 8 9 10 eleven 12 13"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
