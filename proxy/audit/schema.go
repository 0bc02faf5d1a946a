package audit

import (
	"context"
	"iter"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/wardmesh/ward/proxy"
)

// ScanKnown is Scan for readers that draw conclusions from many records and can do without some: whole records that
// another version of Ward wrote are passed over, and other is told of each. Whatever else is not a record still ends it.
func ScanKnown(ctx context.Context, dir string, from int64, other func(schema string)) iter.Seq2[Entry, error] {
	return scan(ctx, cursor{dir: dir, next: from, other: func(json []byte) bool {
		schema := foreign(json)
		if schema == "" {
			return false
		}
		other(schema)
		return true
	}})
}

// foreign gives the schema of a record that another version of Ward wrote, "" for anything else.
func foreign(json []byte) string {
	var r struct {
		Schema string `json:"schema"`
	}
	family, _, _ := strings.Cut(proxy.RecordSchema, "/")
	if err := jsonv2.Unmarshal(json, &r); err != nil || r.Schema == proxy.RecordSchema || !strings.HasPrefix(r.Schema, family+"/") {
		return ""
	}
	return r.Schema
}
