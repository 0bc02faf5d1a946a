package main

import (
	"slices"
	"time"
)

// spread is what several rounds gave.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf sums up figures, of which there must be one at least.
func spreadOf(of []float64) spread {
	of = slices.Clone(of)
	slices.Sort(of)
	n := len(of)
	return spread{Median: (of[(n-1)/2] + of[n/2]) / 2, Min: of[0], Max: of[n-1]}
}

// quantile is the smallest delay that at least that share of all do not exceed.
func quantile(of []time.Duration, share float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	of = slices.Clone(of)
	slices.Sort(of)
	rank := int(share * float64(len(of)))
	if float64(rank) < share*float64(len(of)) {
		rank++
	}
	return of[max(0, rank-1)]
}
