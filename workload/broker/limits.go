package broker

import (
	"fmt"

	"github.com/wardmesh/ward/workload/endpoint"
)

// Limits bound what can be taken of the server. A zero field stands for its default.
type Limits struct {
	Conns      int // open connections of users who can be a broker; 32
	Strangers  int // open connections of all others, who are told no and then closed; 16
	RatePerUID int // new connections of one user per second, after a burst of twice as many; 20
	Streams    int // calls under way of all brokers together; 16384
}

func (l Limits) filled() (Limits, error) {
	if err := endpoint.Fill(
		endpoint.Limit{Field: &l.Conns, Initial: 32}, endpoint.Limit{Field: &l.Strangers, Initial: 16},
		endpoint.Limit{Field: &l.RatePerUID, Initial: 20}, endpoint.Limit{Field: &l.Streams, Initial: 16384},
	); err != nil {
		return l, fmt.Errorf("workload broker: %w", err)
	}
	return l, nil
}

// room is where a connection has its place: brokers do not share theirs with strangers.
func (l Limits) room(stranger bool) endpoint.Room {
	if stranger {
		return endpoint.Room{Name: "strangers", Most: l.Strangers}
	}
	return endpoint.Room{Name: "all-connections", Most: l.Conns}
}
