package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sampled() *results {
	r := &results{leftOut: map[string]string{"caddy": "it is not installed"}}
	for i, v := range [][3]float64{{60, 50, 50}, {80, 100, 40}, {90, 90, 60}} {
		r.samples = append(r.samples, sample{i + 1, "cpu_per_request", ward, v[0]}, sample{i + 1, "cpu_per_request", "nginx", v[1]})
		r.samples = append(r.samples, sample{i + 1, "app_connections_per_s", ward, 4 * v[2]}, sample{i + 1, "idle_mtls_kb", ward, v[2] / 2})
	}
	// This peer was left out after its first round, and was as fast as no proxy in it.
	r.samples = append(r.samples, sample{1, "app_connections_per_s", "ghostunnel", 25}, sample{1, "added_p50", ward, 30}, sample{1, "added_p50", "nginx", -5})
	return r
}

// Ratios are of one round each, never of one round's figure and another's: the machine was another one then.
func TestRatiosArePaired(t *testing.T) {
	rep := summarise(sampled())
	got, _ := rep.ratio("cpu_per_request", "nginx")
	if diff := cmp.Diff(spread{Median: 1, Min: .8, Max: 1.2}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, _ = rep.ratio("app_connections_per_s", "ghostunnel"); got != (spread{8, 8, 8}) {
		t.Errorf("with a peer of one round: %v", got)
	}
	if got, ok := rep.ratio("added_p50", "nginx"); ok {
		t.Errorf("there is a ratio to a figure below nothing: %v", got)
	}
}

// The names are a contract.
func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := summarise(sampled()).json(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Ratios []map[string]any
		Values []map[string]any
		Raw    []map[string]any
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"metric": "cpu_per_request", "peer": "nginx", "median": 1.0, "min": .8, "max": 1.2}, got.Ratios[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"metric": "cpu_per_request", "unit": "µs", "median": 80.0, "min": 60.0, "max": 90.0}, got.Values[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(got.Raw) != len(sampled().samples) {
		t.Errorf("%d of %d samples", len(got.Raw), len(sampled().samples))
	}
	want := "cpu_per_request cpu_per_request_checked bulk_cpu_per_gb bulk_throughput bulk_checked app_connections_per_s handshake_cpu idle_mtls_kb idle_plain_kb added_p50 added_p50_durable added_p99"
	if diff := cmp.Diff(want, strings.Join(metricNames(), " ")); diff != "" {
		t.Errorf("the metrics (-want +got):\n%s", diff)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := summarise(sampled()).table(&b); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"METRIC UNIT OF MEDIAN MIN MAX WARD/IT MIN MAX MUST STRETCH",
		"cpu_per_request µs ward 80.0 60.0 90.0",
		"nginx 90.0 50.0 100 1.00 0.800 1.20 ≤1.10 met ≤1.00 met",
		"app_connections_per_s /s ward 200 160 240",
		"ghostunnel 25.0 25.0 25.0 8.00 8.00 8.00 ≥8.00 met ≥10.0 missed",
		"idle_mtls_kb KiB ward 25.0 20.0 30.0 ≤25.0 met ≤20.0 missed",
		"added_p50 µs ward 30.0 30.0 30.0",
		"nginx -5.00 -5.00 -5.00",
		"left out: caddy: it is not installed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestChart(t *testing.T) {
	var b bytes.Buffer
	if err := summarise(sampled()).svg(&b); err != nil {
		t.Fatal(err)
	}
	bars := 0
	for d := xml.NewDecoder(&b); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "g" {
			bars++
		}
	}
	if bars != 2 {
		t.Errorf("%d bars for 2 ratios", bars)
	}
}

func TestCommandLine(t *testing.T) {
	for _, bad := range []string{"-peers apache", "-metrics speed", "-scenario fast", "-rounds 0", "-duration 1ms", "-front udp", "more"} {
		var said bytes.Buffer
		if _, err := parse(strings.Fields(bad), &said); err == nil || said.Len() == 0 {
			t.Errorf("%s: %v, and %q is said", bad, err, &said)
		}
	}
	o, err := parse(strings.Fields("-peers nginx,ghostunnel -metrics added_p99 -scenario slow -rounds 2"), io.Discard)
	if err != nil || len(o.peers) != 2 || len(o.metrics) != 1 || len(o.scenarios) != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parse([]string{"-peers", "none"}, io.Discard); err != nil || len(o.peers) != 0 || len(o.metrics) != len(metrics()) {
		t.Errorf("%+v, %v", o, err)
	}
}
