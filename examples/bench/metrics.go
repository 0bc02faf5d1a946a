package main

import "slices"

// metric is something that is measured. The names are a contract: scripts read them from -json.
type metric struct {
	name string
	unit string
	more bool // more is better
	what string
	aims []aim
}

// aim is what Ward has set itself: as a ratio to a peer's figure, or as a figure where peer is "".
type aim struct {
	peer          string
	must, stretch float64
}

// met says whether a figure is as good as it should be.
func (m metric) met(figure, aim float64) bool {
	if m.more {
		return figure >= aim
	}
	return figure <= aim
}

// metrics is the table of all of them, in the order in which they are shown.
func metrics() []metric {
	return []metric{
		{name: "cpu_per_request", unit: "µs", what: "processor time of both hops for a call of 1,536 bytes on kept connections",
			aims: []aim{{"nginx", 1.10, 1.00}, {"ghostunnel", 1.25, 1.10}}},
		{name: "cpu_per_request_checked", unit: "µs", what: "the same with a patient's token: Ward reads and checks the reply", aims: []aim{{"nginx", 1.35, 1.20}}},
		{name: "bulk_cpu_per_gb", unit: "s/GB", what: "processor time of both hops for replies of 50 MB", aims: []aim{{"ghostunnel", .80, .70}, {"nginx", .85, .75}}},
		{name: "bulk_throughput", unit: "MB/s", more: true, what: "how fast those replies arrive"},
		{name: "bulk_checked", unit: "MB/s", more: true, what: "how fast replies of 7.5 MB arrive that Ward reads and checks whole", aims: []aim{{"", 150, 200}}},
		{name: "app_connections_per_s", unit: "/s", more: true, what: "new connections of applications, each with one call", aims: []aim{{"ghostunnel", 8, 10}}},
		{name: "handshake_cpu", unit: "ms", what: "processor time of the server hop for a full handshake", aims: []aim{{"ghostunnel", .85, .75}}},
		{name: "idle_mtls_kb", unit: "KiB", what: "memory of the server hop for an idle connection between the hops", aims: []aim{{"", 25, 20}}},
		{name: "idle_plain_kb", unit: "KiB", what: "memory of the client hop for an idle connection of an application", aims: []aim{{"", 8, 6}}},
		{name: "added_p50", unit: "µs", what: "what the chain adds to a call's median delay at a fixed rate; the trail in memory", aims: []aim{{"nginx", 1.15, 1.00}}},
		{name: "added_p50_durable", unit: "µs", what: "the same with the trail on the disk"},
		{name: "added_p99", unit: "µs", what: "what the chain adds to the 99th percentile; the trail in memory"},
	}
}

func metricNames() (names []string) {
	for _, m := range metrics() {
		names = append(names, m.name)
	}
	return names
}

func metricNamed(name string) metric {
	all := metrics()
	return all[slices.IndexFunc(all, func(m metric) bool { return m.name == name })]
}
