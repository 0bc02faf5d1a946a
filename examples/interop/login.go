package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"
)

// login is a person at a browser and the application's own back end together: the authorization code flow with PKCE
// (RFC 6749 §4.1, RFC 7636) through the provider's sign-in and consent pages, for a resource (RFC 8707; "" for none).
// It gives the access token.
func (w *world) login(ctx context.Context, client, user, scope, resource string) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	browser := &http.Client{Jar: jar, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	verifier := rand.Text() + rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	callback := "http://127.0.0.1/" + client + "/callback"
	q := url.Values{"response_type": {"code"}, "client_id": {client}, "redirect_uri": {callback}, "scope": {scope}, "state": {rand.Text()},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"}}
	if resource != "" {
		q.Set("resource", resource)
	}
	code, err := walk(ctx, browser, issuer+"/auth?"+q.Encode(), callback, user, q.Get("state"))
	if err != nil {
		return "", fmt.Errorf("sign-in of %s at %s: %w", user, client, err)
	}
	return w.token(ctx, client, url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {callback}, "code_verifier": {verifier}})
}

// walk follows the provider from page to page until it sends the browser back to the application with a code.
func walk(ctx context.Context, browser *http.Client, at, callback, user, state string) (string, error) {
	pages := []url.Values{
		{"prompt": {"login"}, "login": {user}, "password": {"any"}}, // the provider's development form takes any
		{"prompt": {"consent"}},
	}
	for range 12 {
		if back, ok := strings.CutPrefix(at, callback+"?"); ok {
			answer, err := url.ParseQuery(back)
			switch {
			case err != nil:
				return "", err
			case answer.Get("code") == "" || answer.Get("state") != state || answer.Get("iss") != issuer: // RFC 9207
				return "", fmt.Errorf("refused: %s %s", answer.Get("error"), answer.Get("error_description"))
			}
			return answer.Get("code"), nil
		}
		resp, err := fetch(ctx, browser, http.MethodGet, at, nil)
		if err != nil {
			return "", err
		}
		if resp.StatusCode == http.StatusOK && len(pages) > 0 { // a page with a form, whose action is the page's own URL
			if resp, err = fetch(ctx, browser, http.MethodPost, at, pages[0]); err != nil {
				return "", err
			}
			pages = pages[1:]
		}
		next, err := resp.Location()
		if err != nil {
			return "", fmt.Errorf("%s answered %d and leads nowhere", resp.Request.URL.Path, resp.StatusCode)
		}
		at = next.String()
	}
	return "", fmt.Errorf("the provider goes round in circles")
}

func fetch(ctx context.Context, c *http.Client, method, at string, form url.Values) (*http.Response, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return nil, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp, err
}

// machine is a client's token for itself (RFC 6749 §4.4).
func (w *world) machine(ctx context.Context, client, scope, resource string) (string, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {scope}}
	if resource != "" {
		form.Set("resource", resource)
	}
	return w.token(ctx, client, form)
}

// token is the application's back end at the token endpoint.
func (w *world) token(ctx context.Context, client string, form url.Values) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(w.clinic.Clients[client].Secret)) // RFC 6749 §2.3.1
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct {
		Token       string `json:"access_token"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&got); err != nil {
		return "", err
	}
	if got.Token == "" {
		return "", fmt.Errorf("no token for %s: %s %s", client, got.Error, got.Description)
	}
	w.tokens = append(w.tokens, got.Token)
	return got.Token, nil
}

// claims reads a JWT without verifying it: Ward does that; here it only tells what kind of token was handed out.
func claims(token string) (header, payload map[string]any, err error) {
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return nil, nil, fmt.Errorf("not a JWT")
	}
	for i, into := range []*map[string]any{&header, &payload} {
		b, err := base64.RawURLEncoding.DecodeString(part[i])
		if err != nil {
			return nil, nil, err
		}
		if err := json.Unmarshal(b, into); err != nil {
			return nil, nil, err
		}
	}
	return header, payload, nil
}

// expiry is when a JWT ends.
func expiry(token string) (time.Time, error) {
	_, c, err := claims(token)
	if err != nil {
		return time.Time{}, err
	}
	exp, ok := c["exp"].(float64)
	if !ok {
		return time.Time{}, fmt.Errorf("no exp")
	}
	return time.Unix(int64(exp), 0), nil
}
