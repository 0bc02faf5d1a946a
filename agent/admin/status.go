package admin

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"time"
)

// Names of the shapes below; fields are only ever added.
const (
	StatusSchema  = "ward.status/1"
	EntriesSchema = "ward.entries/1"
)

// Status is the health of one daemon, as `ward status` shows it. Times are RFC 3339.
type Status struct {
	Schema      string    `json:"schema"`
	Host        string    `json:"host"`
	TrustDomain string    `json:"trust_domain"`
	Version     string    `json:"version"`
	Started     time.Time `json:"started"`
	Mode        string    `json:"mode"`
	Role        string    `json:"role"`   // run, agent, egress, ingress, proxy or mesh
	Config      string    `json:"config"` // digest of the config in force

	Identity  Identity   `json:"identity"`
	Authority Authority  `json:"authority"`
	Calls     Calls      `json:"calls"`
	Audit     Audit      `json:"audit"`
	Services  []Service  `json:"services,omitempty"`
	Issuers   []Issuer   `json:"issuers,omitempty"`
	Expires   []Expiring `json:"expires,omitempty"`
	Problems  []string   `json:"problems"`
}

// Healthy reports whether nothing needs an operator.
func (s Status) Healthy() bool { return len(s.Problems) == 0 }

// Identity counts the SVIDs that are held.
type Identity struct {
	Workloads   int       `json:"workloads"` // entries whose SVID is in use
	Entries     int       `json:"entries"`
	EarliestEnd time.Time `json:"earliest_end,omitzero"`
	Renewals    string    `json:"renewals"` // "working", or the last error
}

// Authority is the CA behind the SVIDs.
type Authority struct {
	Kind     string    `json:"kind"` // embedded; "" where another process has it
	Issuance string    `json:"issuance"`
	CAEnds   time.Time `json:"ca_ends,omitzero"`
	CAs      []CA      `json:"cas,omitempty"`
}

// Calls counts calls since the start.
type Calls struct {
	Allowed int64 `json:"allowed"`
	Refused int64 `json:"refused"`
	Errors  int64 `json:"errors"`
}

// Audit is the state of the trail.
type Audit struct {
	Records int64  `json:"records"`
	Error   string `json:"error,omitempty"`
	Dir     string `json:"dir"`
	// Second is the folder that takes the records while Dir cannot, and SecondInUse that it does.
	Second      string `json:"second,omitempty"`
	SecondInUse bool   `json:"second_in_use,omitempty"`
	// ReserveInUse is set while space that was set aside for emergencies is used.
	ReserveInUse bool  `json:"reserve_in_use,omitempty"`
	Folded       int64 `json:"folded,omitempty"` // refusals that were counted in summaries, since the start
}

// Service is one service that this host reaches or serves.
type Service struct {
	Name   string `json:"name"`
	Listen string `json:"listen,omitempty"`
	// Observes is until when what would be refused is let through; zero when the service enforces.
	Observes time.Time `json:"observes,omitzero"`
}

// Issuer is one token issuer and whether its keys are at hand.
type Issuer struct {
	Issuer string `json:"issuer"`
	State  string `json:"state"` // "ok", or why its tokens are refused
}

// Expiring is something that ends and whether its renewal works.
type Expiring struct {
	What string    `json:"what"`
	Ends time.Time `json:"ends"`
}

// Entries lists who is enrolled and holds what, as `ward entries` shows it.
type Entries struct {
	Schema  string  `json:"schema"`
	Entries []Entry `json:"entries"`
}

// Entry is one enrolled workload.
type Entry struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Selectors []string  `json:"selectors"`
	Proxy     bool      `json:"proxy"`
	Holders   int       `json:"holders"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Renews    time.Time `json:"renews,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// ErrUnreachable means that no daemon answered on the socket.
var ErrUnreachable = errors.New("no daemon answers")

// Get reads one of the socket's documents into v. Its errors say which socket, as whom it was tried, and what to do.
func Get(ctx context.Context, socket, path string, v any) error {
	return exchange(ctx, socket, http.MethodGet, path, nil, v)
}

func advice(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "there is no such socket; start the daemon: ward run --config FILE, or ward up"
	case errors.Is(err, os.ErrPermission):
		return "permission denied; use sudo, or join the group " + Group
	case strings.Contains(err.Error(), "refused"):
		return "nobody listens on it; the daemon has stopped: start it with ward run --config FILE, or ward up"
	}
	return err.Error()
}
