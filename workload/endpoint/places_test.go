package endpoint

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestUsersWhoHaveGoneAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces()
		room := Room{Name: "user-connections", Most: 512, PerUser: true}
		for uid := range uint32(sweepAt) {
			if reason := p.take(uid, 200, room); reason != "" {
				t.Fatal(reason)
			}
			if uid > 0 {
				p.leave(uid, room)
			}
		}
		time.Sleep(time.Second)
		p.take(sweepAt, 200, room)
		if rates, rooms := len(p.due), len(p.taken); rates != 1 || rooms != 2 { // who comes; and who has stayed
			t.Errorf("%d users' rates and %d users' rooms are remembered", rates, rooms)
		}
	})
}

func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces()
		all, own := Room{Name: "all", Most: 3}, Room{Name: "own", Most: 2, PerUser: true}
		for i, step := range []struct {
			uid  uint32
			want string
		}{{1, ""}, {1, ""}, {1, "own"}, {2, ""}, {2, "all"}, {0, "all"}} {
			if got := p.take(step.uid, 0, all, own); got != step.want {
				t.Errorf("step %d: %q, want %q", i, got, step.want)
			}
		}
		p.leave(1, all, own)
		if got := p.take(1, 0, all, own); got != "" {
			t.Errorf("a place that was given back: %q", got)
		}
		for _, uid := range []uint32{1, 1, 2} {
			p.leave(uid, all, own)
		}
		if len(p.taken) != 0 {
			t.Errorf("%v is taken", p.taken)
		}

		// A burst of twice the rate, then the rate. Who finds a room full is not charged.
		none := Room{Name: "none"}
		for range 10 {
			if got := p.take(1, 5, none); got != "none" {
				t.Fatalf("%q", got)
			}
		}
		granted := func() (n int) {
			for p.take(1, 5, all) == "" {
				n++
				p.leave(1, all)
			}
			return n
		}
		if n := granted(); n != 10 {
			t.Errorf("%d at once", n)
		}
		time.Sleep(time.Second)
		if n := granted(); n != 5 {
			t.Errorf("%d in the second after", n)
		}
	})
}

func TestFill(t *testing.T) {
	given, zero, negative := 3, 0, -1
	if err := Fill(Limit{&given, 7}, Limit{&zero, 7}); err != nil || given != 3 || zero != 7 {
		t.Errorf("%d, %d, %v", given, zero, err)
	}
	if err := Fill(Limit{&negative, 7}); err == nil {
		t.Error("a negative limit was taken")
	}
}
