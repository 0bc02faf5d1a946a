package workload

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-memdb"
)

// changes are channels of which each is closed when something that a visit has looked at may have become
// another. Nil channels are allowed and never closed.
type changes []<-chan struct{}

// few is how many channels a waiting visit can have cheaply: those of a process with one identity or two. A
// wider select would make the stack of every open stream larger.
const few = 8

// wait returns nil when one of the channels is closed, errTick after d, and otherwise ctx's error.
func (c changes) wait(ctx context.Context, d time.Duration) error {
	if len(c) > few {
		return c.waitMany(ctx, d)
	}
	var ch [few]<-chan struct{}
	copy(ch[:], c)
	tick := time.NewTimer(d)
	defer tick.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-tick.C:
		return errTick
	case <-ch[0]:
	case <-ch[1]:
	case <-ch[2]:
	case <-ch[3]:
	case <-ch[4]:
	case <-ch[5]:
	case <-ch[6]:
	case <-ch[7]:
	}
	return nil
}

func (c changes) waitMany(ctx context.Context, d time.Duration) error {
	set := memdb.NewWatchSet()
	for _, ch := range c {
		set.Add(ch)
	}
	tick, cancel := context.WithTimeoutCause(ctx, d, errTick)
	defer cancel()
	if set.WatchCtx(tick) == nil {
		return nil
	}
	return context.Cause(tick)
}

// errTick says that nothing happened for a while.
var errTick = errors.New("nothing has changed")
