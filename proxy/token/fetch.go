package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is asked of an issuer.
const (
	fetchTimeout = 10 * time.Second // for metadata and keys together
	maxMetadata  = 128 << 10
	maxKeySet    = 256 << 10
)

// source is where an issuer's key set comes from: remote or file.
type source interface {
	// fetch gives the key set, and for how long its source calls it fresh: 0 when it does not say.
	fetch(ctx context.Context) ([]byte, time.Duration, error)
}

// remote is an issuer's web server. Redirects are not followed, proxies from the environment not used.
type remote struct {
	client   *http.Client
	scheme   string // of every URL: an https issuer cannot send us to http
	issuer   string
	metadata string // "" when jwks is fixed
	jwks     string // "" when it is to be read from metadata
}

// newClient makes a client for one issuer; plain means http, for which nothing but this machine can be dialled.
func newClient(plain bool, roots *x509.CertPool, dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	d := &net.Dialer{Timeout: fetchTimeout}
	if plain {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			// The name localhost was allowed; what it resolved to must be this machine.
			if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().Unmap().IsLoopback() {
				return errors.New("plain http to another machine")
			}
			return nil
		}
	}
	if dial == nil {
		dial = d.DialContext
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    fetchTimeout,
			DisableKeepAlives:      true, // minutes lie between two fetches
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

func (r *remote) fetch(ctx context.Context) ([]byte, time.Duration, error) {
	jwks := r.jwks
	if r.metadata != "" {
		var err error
		if jwks, err = r.discover(ctx); err != nil {
			return nil, 0, err
		}
	}
	b, h, err := r.get(ctx, jwks, maxKeySet)
	if err != nil {
		return nil, 0, err
	}
	return b, freshness(h), nil
}

// freshness is how long an answer is still fresh by its Cache-Control (RFC 9111 §4.2.1) and Age (§4.2.3), 0 when that
// is not said. It can only make the keys be read sooner, so what is said in any other way is passed over.
func freshness(h http.Header) time.Duration {
	for d := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(d), "=")
		if !strings.EqualFold(name, "max-age") { // RFC 9111 §5.2: names are compared without case
			continue
		}
		most, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
		if err != nil {
			return 0
		}
		age, err := strconv.ParseUint(h.Get("Age"), 10, 31)
		if err != nil {
			age = 0
		}
		// What is stale already is as fresh as can be had.
		return max(time.Duration(most)*time.Second-time.Duration(age)*time.Second, 1)
	}
	return 0
}

// discover reads where the keys are from the issuer's metadata.
func (r *remote) discover(ctx context.Context) (string, error) {
	b, h, err := r.get(ctx, r.metadata, maxMetadata)
	if err != nil {
		return "", err
	}
	// OpenID Connect Discovery §4.2, RFC 8414 §3.2: application/json
	if m, _, err := mime.ParseMediaType(h.Get("Content-Type")); err != nil || m != "application/json" {
		return "", fmt.Errorf("%s: the metadata is not application/json", r.metadata)
	}
	members, err := object(b)
	if err != nil {
		return "", fmt.Errorf("%s: the metadata is not a JSON object without duplicate names", r.metadata)
	}
	// OpenID Connect Discovery §4.3, RFC 8414 §3.3: the issuer must be identical, or the metadata must not be used
	if issuer, ok := text(members["issuer"], 1024); !ok || issuer != r.issuer {
		return "", fmt.Errorf("%s: the metadata is that of another issuer", r.metadata)
	}
	jwks, ok := text(members["jwks_uri"], 2048)
	if !ok {
		return "", fmt.Errorf("%s: the metadata has no jwks_uri", r.metadata)
	}
	if err := r.allowed(jwks); err != nil {
		return "", fmt.Errorf("%s: jwks_uri: %w", r.metadata, err)
	}
	return jwks, nil
}

// allowed accepts https URLs, and http ones on this machine for an issuer that is itself there.
func (r *remote) allowed(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("keys: not an absolute URL without user and fragment")
	case u.Scheme != r.scheme:
		return fmt.Errorf("keys: the scheme must be %s, as the issuer's", r.scheme)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return errors.New("keys: plain http is accepted only on this machine; use https")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("keys: the scheme must be https")
	}
	return nil
}

// get reads one document of at most limit bytes.
func (r *remote) get(ctx context.Context, at string, limit int64) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	req.Header.Set("User-Agent", "ward")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, nil, err // names the URL already
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, nil, fmt.Errorf("%s: answered %d; redirects are not followed", at, resp.StatusCode)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: answered %d", at, resp.StatusCode)
	}
	b, err := readAtMost(resp.Body, limit)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", at, err)
	}
	return b, resp.Header, nil
}

// file is a key set on this host.
type file string

func (f file) fetch(context.Context) ([]byte, time.Duration, error) {
	// Not blocking, so that a FIFO in its place cannot hold us up.
	h, err := os.OpenFile(string(f), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer h.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", string(f), err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, 0, fmt.Errorf("%s: not a regular file", string(f))
	case st.Mode&0o022 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return nil, 0, fmt.Errorf("%s: others can write it; make it root's or your own, chmod go-w", string(f))
	}
	b, err := readAtMost(h, maxKeySet)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", string(f), err)
	}
	return b, 0, nil
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("longer than %d bytes", limit)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}
