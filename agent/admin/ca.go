package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CAsSchema names the shape of CAs; fields are only ever added.
const CAsSchema = "ward.ca/1"

// Certifier is the one thing that can be changed over the socket: the CAs of a process that has an authority. Implemented
// by agent/daemon; NoCertifier is for the roles that have none.
type Certifier interface {
	CAs(ctx context.Context) (CAs, error)
	// OrderCA takes a step on behalf of the process at the other end, which runs as uid.
	OrderCA(ctx context.Context, uid uint32, o CAOrder) error
}

// Errors of a Certifier.
var (
	// ErrRefused: the step may not be taken now.
	ErrRefused = errors.New("refused")
	// ErrUnavailable: there is no authority here, or it cannot be asked.
	ErrUnavailable = errors.New("the authority is not to be had")
)

// NoCertifier has no CAs.
type NoCertifier struct{}

// CAs is always ErrUnavailable.
func (NoCertifier) CAs(context.Context) (CAs, error) {
	return CAs{}, fmt.Errorf("%w: it is in another process; ask ward agent", ErrUnavailable)
}

// OrderCA is always ErrUnavailable.
func (n NoCertifier) OrderCA(ctx context.Context, _ uint32, _ CAOrder) error {
	_, err := n.CAs(ctx)
	return err
}

// CAs says which CAs there are and what happens to them next.
type CAs struct {
	Schema      string    `json:"schema"`
	TrustDomain string    `json:"trust_domain"`
	Sequence    uint64    `json:"sequence"` // of the bundle
	Lead        string    `json:"lead"`     // how long the next CA is published before it signs
	CAs         []CA      `json:"cas"`
	Next        string    `json:"next"` // what the authority does next by itself: prepare, activate or retire
	NextCA      uint32    `json:"next_ca"`
	NextAt      time.Time `json:"next_at"`
}

// CA is one of the authority's CAs.
type CA struct {
	Generation int       `json:"generation"`
	State      string    `json:"state"` // prepared, active or old
	Ends       time.Time `json:"ends"`
	Key        string    `json:"key,omitempty"`           // the subject key identifier, hexadecimal
	Sealed     bool      `json:"sealed"`                  // whether its key lies sealed on the disk; an old one has none
	Published  time.Time `json:"published,omitzero"`      // when it came into the bundle
	Activated  time.Time `json:"activated,omitzero"`      // when it began to sign
	Replaced   time.Time `json:"replaced,omitzero"`       // when it stopped
	LastSVID   time.Time `json:"last_svid_ends,omitzero"` // the end of the SVID of this CA that lives longest
}

// CAOrder asks for one step.
type CAOrder struct {
	Step       string `json:"step"`                 // prepare, activate or retire
	Generation uint32 `json:"generation,omitempty"` // retire: which CA; 0 stands for the oldest that does not sign
	// Force takes the step although it cuts off processes that are not to blame: for a CA whose key is known to others.
	Force bool `json:"force,omitempty"`
}

// mostOrder is how long an order may be, in bytes.
const mostOrder = 1 << 10

// uidKey is where a connection's context has the uid of the process at its other end.
type uidKey struct{}

// withUID asks the kernel who opened a connection, as it was at that moment.
func withUID(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, uidKey{}, cred.Uid)
}

func (o Options) showCAs(w http.ResponseWriter, r *http.Request) {
	cas, err := o.Certifier.CAs(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, cas)
}

// orderCA answers with the CAs as they are after the step. A web page cannot make anybody send such an order: a browser
// reaches no Unix socket, and behind a bridge to one it sends no JSON to a stranger without asking first.
func (o Options) orderCA(w http.ResponseWriter, r *http.Request) {
	uid, known := r.Context().Value(uidKey{}).(uint32)
	if !known {
		http.Error(w, "it is not known who asks", http.StatusForbidden)
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		http.Error(w, "an order is application/json", http.StatusUnsupportedMediaType)
		return
	}
	order, err := parseOrder(http.MaxBytesReader(w, r.Body, mostOrder))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := o.Certifier.OrderCA(r.Context(), uid, order); err != nil {
		refuse(w, err)
		return
	}
	o.showCAs(w, r)
}

func parseOrder(body io.Reader) (CAOrder, error) {
	text, err := io.ReadAll(body)
	if err != nil {
		return CAOrder{}, errors.New("the order is too long, or incomplete")
	}
	var o CAOrder
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil || d.More() {
		return CAOrder{}, errors.New("the order is not one JSON object of step, generation and force")
	}
	switch o.Step {
	case "prepare", "activate", "retire":
		return o, nil
	}
	return CAOrder{}, errors.New("step is prepare, activate or retire")
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, ErrRefused):
		status = http.StatusConflict
	case errors.Is(err, ErrUnavailable):
		status = http.StatusServiceUnavailable
	}
	http.Error(w, err.Error(), status)
}

// Order asks the daemon behind a socket for a step, and gives the CAs as they are after it. A refusal is ErrRefused or
// ErrUnavailable, in the daemon's words.
func Order(ctx context.Context, socket string, o CAOrder) (CAs, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return CAs{}, err
	}
	var out CAs
	return out, exchange(ctx, socket, http.MethodPost, "/ca", bytes.NewReader(text), &out)
}

// told is what the daemon said, as one of the errors above.
type told struct {
	kind error
	text string
}

func (t *told) Error() string        { return t.text }
func (t *told) Is(target error) bool { return target == t.kind }

// failure is an answer that is not the document asked for.
func failure(socket string, resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	text = bytes.TrimSpace(text)
	switch resp.StatusCode {
	case http.StatusConflict:
		return &told{ErrRefused, string(bytes.TrimPrefix(text, []byte(ErrRefused.Error()+": ")))}
	case http.StatusServiceUnavailable:
		return &told{ErrUnavailable, string(bytes.TrimPrefix(text, []byte(ErrUnavailable.Error()+": ")))}
	}
	return fmt.Errorf("%s: %s", socket, resp.Status)
}

// exchange sends one request to the daemon behind a socket. Its errors say which socket, as whom it was tried, and what
// to do.
func exchange(ctx context.Context, socket, method, path string, body io.Reader, v any) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://ward"+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w on %s (you are uid %d): %s", ErrUnreachable, socket, os.Getuid(), advice(err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return failure(socket, resp)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(v)
}
