package daemon

import (
	"testing"
	"time"
)

// An SVID may live for five seconds: an agent that was away is asked again long before, and never left alone for long.
func TestAgentThatWasAwayIsAskedAgainSoon(t *testing.T) {
	b := prompt{}.NewBackoff()
	var waited time.Duration
	for i := range 5 {
		waited += b.Next()
		if waited > time.Second {
			t.Fatalf("%v before attempt %d", waited, i+1)
		}
	}
	for range 100 {
		if d := b.Next(); d > time.Second {
			t.Fatalf("a pause of %v", d)
		}
	}
	b.Reset()
	if d := b.Next(); d != firstAsk {
		t.Errorf("after an answer: %v", d)
	}
}
