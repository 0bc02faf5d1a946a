package up

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/wardmesh/ward/examples/demo/provider"
)

// part is what a workload's process is told about the world when it starts.
type part struct {
	Workload string `json:"workload"` // the Workload API's address
	Egress   string `json:"egress"`   // host:port
	Socket   string `json:"socket"`   // the service's own socket
	Issuer   string `json:"issuer"`
	Client   string `json:"client"`
	Secret   string `json:"secret"`
}

// order is one thing that a workload's process is to do. Without a Path it only gets a token.
type order struct {
	Method string            `json:"method"`
	Path   string            `json:"path"` // sent byte for byte
	Header map[string]string `json:"header,omitempty"`
	Body   string            `json:"body,omitempty"`
	Token  *tokenOrder       `json:"token,omitempty"`
	Bearer string            `json:"bearer,omitempty"` // a token that is there already
	Unix   bool              `json:"unix,omitempty"`   // over the service's own socket
	Watch  bool              `json:"watch,omitempty"`  // call again and again, slowly, until the SVID has rotated
}

// tokenOrder is a token to ask the OpenID Provider for.
type tokenOrder struct {
	User     string `json:"user,omitempty"` // "" for the client itself
	Scope    string `json:"scope,omitempty"`
	Audience string `json:"audience,omitempty"`
	Lifetime string `json:"lifetime,omitempty"`
}

// answer is how an order ended.
type answer struct {
	Error        string `json:"error,omitempty"`
	Status       int    `json:"status,omitempty"`
	Decision     string `json:"decision,omitempty"`
	Bearer       string `json:"bearer,omitempty"`
	SerialBefore string `json:"serial_before,omitempty"`
	SerialAfter  string `json:"serial_after,omitempty"`
	Calls        int    `json:"calls,omitempty"`
}

// Workload is one workload's process: it reads its part and then orders, a JSON line each, and answers each with one.
// It knows a mesh name, a Workload API socket and an OpenID Provider, as an application would.
func Workload(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := json.NewDecoder(bufio.NewReader(in))
	w := &actor{}
	if err := lines.Decode(&w.part); err != nil {
		return fmt.Errorf("no part to play: %w", err)
	}
	for {
		var o order
		if err := lines.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := w.obey(ctx, o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := json.NewEncoder(out).Encode(a); err != nil {
			return err
		}
	}
}

type actor struct{ part part }

func (w *actor) obey(ctx context.Context, o order) (answer, error) {
	var a answer
	if o.Token != nil {
		token, err := w.token(ctx, *o.Token)
		if err != nil {
			return a, err
		}
		o.Bearer = token
	}
	if o.Path == "" {
		a.Bearer = o.Bearer
		return a, nil
	}
	if o.Watch {
		return w.watch(ctx, o)
	}
	return w.call(ctx, o)
}

// token asks the OpenID Provider.
func (w *actor) token(ctx context.Context, t tokenOrder) (string, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if t.User != "" {
		form = url.Values{"grant_type": {"password"}, "username": {t.User}, "password": {provider.Password}}
	}
	for name, v := range map[string]string{"scope": t.Scope, "resource": t.Audience, "lifetime": t.Lifetime} {
		if v != "" {
			form.Set(name, v)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.part.Issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(w.part.Client, w.part.Secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct {
		Token string `json:"access_token"`
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&got); err != nil {
		return "", err
	}
	if got.Token == "" {
		return "", fmt.Errorf("the provider gave no token: %s", got.Error)
	}
	return got.Token, nil
}

// call makes one plain HTTP call to the mesh name.
func (w *actor) call(ctx context.Context, o order) (answer, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		// What resolving the mesh name would lead to, where the host's DNS is not to be touched.
		if o.Unix {
			return new(net.Dialer).DialContext(ctx, "unix", w.part.Socket)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", w.part.Egress)
	}}
	req, err := http.NewRequestWithContext(ctx, o.Method, "http://"+serviceName+"/", bytes.NewReader([]byte(o.Body)))
	if err != nil {
		return answer{}, err
	}
	req.URL.Opaque = o.Path
	if o.Body != "" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	if o.Bearer != "" {
		req.Header.Set("Authorization", "Bearer "+o.Bearer)
	}
	for n, v := range o.Header {
		req.Header[n] = []string{v} // as it is spelt
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("the reply broke off: %w", err)
	}
	if !json.Valid(body) {
		return answer{}, errors.New("the reply is not whole")
	}
	return answer{Status: resp.StatusCode, Decision: resp.Header.Get("Ward-Decision"), Calls: 1}, nil
}

// watch keeps slow calls running until the process's own SVID has rotated under one of them.
func (w *actor) watch(ctx context.Context, o order) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	serials := make(chan string, 16)
	go func() {
		_ = workloadapi.WatchX509Context(ctx, serialWatcher(serials), workloadapi.WithAddr(w.part.Workload))
		close(serials)
	}()
	a := answer{SerialBefore: <-serials}
	o.Header = map[string]string{"User-Agent": "slow-reader/500ms"}
	for calls := 1; ; calls++ {
		got, err := w.call(ctx, o)
		if err != nil {
			return a, err
		}
		a.Status, a.Decision, a.Calls = got.Status, got.Decision, calls
		if got.Status != http.StatusOK {
			return a, nil
		}
		if a.SerialAfter != "" {
			return a, nil // this call has run on the new SVID
		}
		select {
		case s, ok := <-serials:
			if !ok {
				return a, errors.New("the Workload API stream ended")
			}
			a.SerialAfter = s
		default:
		}
	}
}

type serialWatcher chan string

func (s serialWatcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	s <- c.DefaultSVID().Certificates[0].SerialNumber.Text(16)
}
func (serialWatcher) OnX509ContextWatchError(error) {}
