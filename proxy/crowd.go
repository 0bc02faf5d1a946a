package proxy

import (
	"cmp"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// How many connections a service's ward keeps open where Service does not say: for one caller, and for all.
const (
	DefaultMaxConnections      = 1024
	DefaultMaxConnectionsTotal = 16384
)

// crowd counts a service's open connections. Each costs memory and a descriptor, and whoever has an identity can open as
// many as it likes: without a bound one caller that is broken, or taken over, would keep out all others.
type crowd struct {
	mu      sync.Mutex
	all     int
	callers map[spiffeid.ID]int
}

// enter takes a place for one connection of id under the bounds of s, and says how to give it back, which may be done
// once. Those who are no callers of s have one caller's places between them: they cannot take the callers' ones.
func (c *crowd) enter(id spiffeid.ID, s *Service) (leave func(), err error) {
	each, all := cmp.Or(s.MaxConnections, DefaultMaxConnections), cmp.Or(s.MaxConnectionsTotal, DefaultMaxConnectionsTotal)
	whose, who := id, id.String()
	if !s.MayCall(id) {
		whose, who = spiffeid.ID{}, "those who may not call "+s.Name
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.callers[whose] >= each:
		return nil, Refuse(CauseLimit, "%s: %d connections are open, and max_connections is %d", who, c.callers[whose], each)
	case c.all >= all:
		return nil, Refuse(CauseLimit, "%s: %d connections of all callers are open, and max_connections_total is %d", s.Name, c.all, all)
	}
	if c.callers == nil {
		c.callers = map[spiffeid.ID]int{}
	}
	c.all++
	c.callers[whose]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.callers[whose]--; c.callers[whose] == 0 {
			delete(c.callers, whose)
		}
	}, nil
}
