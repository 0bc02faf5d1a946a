package up

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/wardmesh/ward/agent/config"
	"github.com/wardmesh/ward/examples/demo/provider"
)

// The clinic that is played.
const (
	trustDomain = "clinic.test"
	serviceName = "fhir.ehr.mesh.internal"
	audience    = "http://" + serviceName
	wardID      = "/ward/ehr"
)

// firstUID is the user of the first workload where each has its own: a range that nobody hands out (systemd's
// UIDS-GIDS.md: 60578 to 61183 is unused).
const firstUID = 60701

// player is one workload. Without an id it is a process that nobody has enrolled.
type player struct {
	name   string
	id     string
	client string        // its OAuth client, whose secret is its name: nothing here is worth more
	ttl    time.Duration // of its SVIDs; 0 for the default
}

func cast() []player {
	return []player{
		{name: "portal", id: "/app/portal", client: "smart-portal"},
		{name: "ehr", id: "/app/ehr", client: "ehr"},
		{name: "scraper", id: "/app/scraper", client: "directory"},
		{name: "bridge", id: "/bridge/icu", client: "icu-bridge"},
		// Short enough to see it rotate: at about half of its life.
		{name: "etl", id: "/etl/night", client: "night-export", ttl: 15 * time.Second},
		{name: "stranger"},
	}
}

// maxExchange is a third of the shortest SVID's life, the most that is allowed.
const maxExchange = 5 * time.Second

func id(cfg *config.Config, path string) spiffeid.ID {
	return spiffeid.RequireFromPath(cfg.TrustDomain, path)
}

func users() []provider.User {
	return []provider.User{
		{Name: "dr.lee", Display: "Dr. Lee", Roles: []string{"physician"}, FHIRUser: "Practitioner/example"},
		{Name: "nurse.kim", Display: "Kim", Roles: []string{"nurse"}, FHIRUser: "Practitioner/f204"},
		{Name: "sam.desk", Display: "Sam", Roles: []string{"frontdesk"}},
		{Name: "anna", Display: "Anna", FHIRUser: "Patient/example", Patient: "example"},
	}
}

func clients() []provider.Client {
	var out []provider.Client
	scopes := map[string][]string{
		"smart-portal": {"user/*.rs", "user/Patient.r", "patient/*.rs", "openid"},
		"ehr":          {"user/*.cruds"},
		"directory":    {"system/Practitioner.rs"},
		"icu-bridge":   {"system/Observation.c"},
		"night-export": {"system/*.rs"},
	}
	for _, p := range cast() {
		if p.client != "" {
			out = append(out, provider.Client{ID: p.client, Secret: p.name, Scopes: scopes[p.client]})
		}
	}
	return out
}
