package config_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wardmesh/ward/agent/config"
)

// node is the part of a JSON Schema that this test walks.
type node struct {
	Type        any             `json:"type"`
	Description string          `json:"description"`
	Properties  map[string]node `json:"properties"`
	Items       *node           `json:"items"`
	AnyOf       []node          `json:"anyOf"`
	Additional  *bool           `json:"additionalProperties"`
	Examples    []any           `json:"examples"`
	Enum        []string        `json:"enum"`
}

// TestSchema walks every key: each is documented, can be described, and shows an example; mappings are closed.
func TestSchema(t *testing.T) {
	var root node
	if err := json.Unmarshal(config.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	seen := 0
	var walk func(path string, n node)
	walk = func(path string, n node) {
		if n.Items != nil {
			walk(path, *n.Items)
		}
		for _, alt := range n.AnyOf {
			walk(path, alt)
		}
		if n.Properties != nil && (n.Additional == nil || *n.Additional) {
			t.Errorf("%s: unknown keys are allowed", path)
		}
		for name, sub := range n.Properties {
			seen++
			at := strings.TrimPrefix(path+"."+name, ".")
			if sub.Description == "" || !strings.HasSuffix(sub.Description, ".") || len(sub.Examples) != 1 || sub.Examples[0] == nil {
				t.Errorf("%s lacks a description or an example: %+v", at, sub)
			}
			text, ok := config.Describe(at)
			if !ok || !strings.HasPrefix(text, at+": ") || !strings.Contains(text, "\n  example: "+name+": ") {
				t.Errorf("Describe(%s) = %q, %v", at, text, ok)
			}
			walk(at, sub)
		}
	}
	walk("", root)
	if seen < 80 {
		t.Errorf("the schema has %d keys only", seen)
	}
}

// TestExamples: each example of the table, put in its place in a whole config, loads. They are what an operator copies.
func TestExamples(t *testing.T) {
	var root node
	if err := json.Unmarshal(config.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	good := func() map[string]any {
		return map[string]any{
			"trust_domain": "clinic.example",
			"workloads": []any{
				map[string]any{"id": "/app/portal", "name": "p", "select": map[string]any{"unix.uid": 991}, "proxy": true, "svid": map[string]any{}},
				map[string]any{"id": "/bridge/icu", "select": map[string]any{"unix.uid": 992}},
			},
			"devices": []any{map[string]any{"id": "/device/x", "via": []any{"/bridge/icu"},
				"identifiers": []any{map[string]any{"type": "USB", "system": "urn:a:b", "value": "x"}},
				"patient":     []any{map[string]any{"ref": "Patient/9", "until": "2100-01-01"}}}},
			"services": []any{map[string]any{"name": "x.mesh.internal", "id": "/ward/x", "addresses": []any{"a:1"}, "callers": []any{"/app/portal"},
				"listen": "10.0.0.5:8443", "upstream": map[string]any{"address": "unix:/x"}}},
			"tokens":   []any{map[string]any{"issuer": "https://idp.clinic.example", "audience": []any{"a"}, "claims": map[string]any{}}},
			"bindings": []any{map[string]any{"issuer": "https://idp.clinic.example", "client_id": "x", "workloads": []any{"/app/portal"}}},
		}
	}
	var walk func(path []string, n node)
	walk = func(path []string, n node) {
		if n.Items != nil {
			walk(path, *n.Items)
		}
		for _, alt := range n.AnyOf {
			walk(path, alt)
		}
		for name, sub := range n.Properties {
			at := append(append([]string{}, path...), name)
			c := good()
			into := c
			for _, step := range path {
				if step == "intercept" && into[step] == nil {
					into[step] = []any{map[string]any{"select": map[string]any{"unix.uid": 991}, "ports": []any{80}}}
				}
				switch next := into[step].(type) {
				case []any:
					into = next[0].(map[string]any)
				case map[string]any:
					into = next
				default:
					m := map[string]any{}
					into[step] = m
					into = m
				}
			}
			into[name] = sub.Examples[0]
			switch key := strings.Join(at, "."); key {
			case "workloads": // an example of one workload cannot hold those that the rest refers to
				delete(c, "devices")
				delete(c, "services")
			case "workloads.id", "tokens.issuer", "tokens", "workloads.proxy":
			case "devices.id", "services.id", "services.name":
			case "services.mode": // observing and its end go together
				into["observe_until"] = "2026-12-31"
			case "services.observe_until":
				into["mode"] = "observe"
			case "mesh.intercept.select.systemd.unit": // one of the two
				delete(into, "unix.uid")
			case "tokens.jwks_uri", "tokens.jwks_file":
				delete(into, "discovery")
			}
			text, err := json.Marshal(c) // JSON is YAML
			if err != nil {
				t.Fatal(err)
			}
			if err := config.Check("ward.yaml", text); err != nil {
				t.Errorf("the example of %s does not load: %v\n%s", strings.Join(at, "."), err, text)
			}
			walk(at, sub)
		}
	}
	walk(nil, root)
}

func TestDescribe(t *testing.T) {
	var got strings.Builder
	for _, path := range []string{"", "bindings.mode", "workloads.select", "workloads.select.unix.uid", "services.max_exchange", "services.proxy_protocol", "services.max_connections", "trust_domain"} {
		text, ok := config.Describe(path)
		if !ok {
			t.Fatalf("Describe(%q) finds nothing", path)
		}
		got.WriteString("$ ward schema " + path + "\n" + text + "\n")
	}
	const golden = "testdata/describe.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, path := range []string{"nothing", "bindings.modes", "trust_domain.x", "workloads.select.unix", "bindings..mode", "."} {
		if text, ok := config.Describe(path); ok {
			t.Errorf("Describe(%q) = %q", path, text)
		}
	}
}
