//go:build !race

// Under the race detector sync.Pool forgets on purpose.

package audit

import (
	"context"
	"testing"
)

// A record costs no allocation, and a batch that is waited for two: its receipt, and the channel that wakes who waits.
func TestAppendAllocations(t *testing.T) {
	l := mustOpen(t, testOptions(t))
	r := intentRecord()
	n := testing.AllocsPerRun(500, func() {
		if _, err := l.Append(r); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%.0f allocations to append a record", n)
	}
	n = testing.AllocsPerRun(500, func() {
		receipt, err := l.Append(r)
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if n > 2 {
		t.Errorf("%.0f allocations to make a record durable, 2 allowed", n)
	}
}
