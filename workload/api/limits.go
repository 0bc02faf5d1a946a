package api

import (
	"fmt"

	"github.com/wardmesh/ward/workload/endpoint"
)

// Limits bound what local users can take. A zero field stands for its default.
type Limits struct {
	Conns          int // open connections of all users together; 8192
	ConnsPerUID    int // open connections of one user; 512
	RatePerUID     int // new connections of one user per second, after a burst of twice as many; 200
	StreamsPerUID  int // calls under way for one user; 1024
	StreamsPerConn int // calls under way on one connection; further ones wait at the client; 64
}

func (l Limits) filled() (Limits, error) {
	if err := endpoint.Fill(
		endpoint.Limit{Field: &l.Conns, Initial: 8192}, endpoint.Limit{Field: &l.ConnsPerUID, Initial: 512},
		endpoint.Limit{Field: &l.RatePerUID, Initial: 200}, endpoint.Limit{Field: &l.StreamsPerUID, Initial: 1024},
		endpoint.Limit{Field: &l.StreamsPerConn, Initial: 64},
	); err != nil {
		return l, fmt.Errorf("workload api: %w", err)
	}
	return l, nil
}

// admit finds a connection its places.
func (l Limits) admit(c *endpoint.Conn) (reason string, err error) {
	return c.Place(l.RatePerUID,
		endpoint.Room{Name: "all-connections", Most: l.Conns},
		endpoint.Room{Name: "user-connections", Most: l.ConnsPerUID, PerUser: true})
}
