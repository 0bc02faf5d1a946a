package broker

import (
	"context"
	"time"

	"github.com/wardmesh/ward/attest"
)

// word is what the agent has said of a line's process lately: that it has the line's identity. It stands for the answer to
// another question as long as three things hold, each of which says that nothing has changed.
//
//   - The process stands as it was seen to stand before the agent was asked (attest.Standing): it has not replaced its
//     program, and is in the same groups and cgroup. Its reference says that it is the same process and user.
//   - The agent is heard on the line's own stream, on which it tells of a change of entries, of a denial and of the end
//     of the process.
//   - It is fresh (ClientOptions.Fresh), for whatever neither shows. All that ends an identity reaches its connections
//     within that time, and so must what would keep one from beginning. Whoever comes when half of it has passed has the
//     agent asked anew, so that a process that calls and calls never waits.
//
// Where somebody knows of a reason why the agent might say otherwise, it ends at once (Client.Doubt).
type word struct {
	seen  attest.Standing
	asked time.Time
}

// vouch notes the agent's answer to a question that was asked at that time, of a process that had been seen before.
func (l *line) vouch(seen attest.Standing, asked time.Time) {
	if !seen.Known() {
		return
	}
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && l.follows && asked.After(l.c.doubted) && asked.After(l.word.asked) {
		l.word = word{seen, asked}
	}
}

// Doubt makes whatever the agent has said so far stand for nothing: of every process that borrows from now on it is asked
// again. What is lent already stays so.
func (c *Client) Doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubted = time.Now()
	for _, l := range c.known {
		l.mu.Lock()
		l.word = word{}
		l.mu.Unlock()
	}
}

// unheard is called when the agent is heard no more, for now.
func (l *line) unheard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.follows, l.word = false, word{}
}

// vouched reports whether the agent's last word stands for another one about the process as it is seen now.
func (l *line) vouched(seen attest.Standing, now time.Time) bool {
	l.mu.Lock()
	held, word := l.err == nil && l.held != nil && l.held.valid(), l.word
	l.mu.Unlock()
	age := now.Sub(word.asked)
	if !held || !seen.Same(word.seen) || age >= l.c.o.Fresh {
		return false
	}
	if age >= l.c.o.Fresh/2 {
		l.again(seen)
	}
	return true
}

// again asks the agent anew, unless somebody does already. What it says reaches the line.
func (l *line) again(seen attest.Standing) {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || l.asked != nil || l.next != nil {
		return
	}
	l.users++ // as the one who called has it, it is not idle
	c.tasks.Go(func() {
		defer c.release(l)
		ctx, cancel := context.WithTimeout(c.ctx, c.o.Wait)
		defer cancel()
		_ = l.confirm(ctx, seen)
	})
}
