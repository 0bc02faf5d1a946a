package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// tally is what an application saw of its calls.
type tally struct {
	OK       int
	Failed   []failure
	Slowest  time.Duration
	LastGood time.Time
}

// failure is a call that did not end in 200.
type failure struct {
	Began, Ended time.Time
	Status       int    `json:",omitempty"`
	Error        string `json:",omitempty"`
	Decision     string `json:",omitempty"`
}

// load is an application in the guest: some users at once, each of whom calls again and again. Half of them do so as an
// ordinary HTTP client does, over connections that are kept, and on a broken one the client asks again by itself; the
// others make a connection for each call, and see every failure. It ends on SIGTERM, once the calls that run have ended,
// and writes its tally into a file.
func load(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("socket", "", "Unix `socket` of the service at Ward")
	url := flags.String("url", "", "`URL` to call")
	tokenFile := flags.String("token", "", "`file` with the user's access token")
	users := flags.Int("users", 4, "users at once")
	pace := flags.Duration("pace", 5*time.Millisecond, "how long a user thinks between calls")
	result := flags.String("result", "", "`file` for the tally")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	token, err := os.ReadFile(*tokenFile)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client := func(keep bool) *http.Client {
		return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: *users, DisableKeepAlives: !keep,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", *socket)
			}}}
	}
	kept, fresh := client(true), client(false)
	var mu sync.Mutex
	var t tally
	var wg sync.WaitGroup
	for i := range *users {
		c := kept
		if i%2 == 1 {
			c = fresh
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				f := call(c, *url, strings.TrimSpace(string(token)))
				mu.Lock()
				t.Slowest = max(t.Slowest, f.Ended.Sub(f.Began))
				if f.Status == http.StatusOK && f.Error == "" {
					t.OK++
					t.LastGood = f.Ended
				} else {
					t.Failed = append(t.Failed, f)
				}
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(*pace):
				}
			}
		})
	}
	fmt.Fprintln(stdout, "calling")
	wg.Wait()
	text, err := json.Marshal(t)
	if err == nil {
		err = os.WriteFile(*result, text, 0o644) //nolint:gosec // no secret
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// call makes one call. The context does not end with SIGTERM: what has begun may end.
func call(client *http.Client, url, token string) (f failure) {
	f.Began = time.Now()
	defer func() { f.Ended = time.Now() }()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		f.Error = err.Error()
		return f
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		f.Error = errors.Unwrap(err).Error()
		return f
	}
	defer resp.Body.Close()
	f.Status, f.Decision = resp.StatusCode, resp.Header.Get("Ward-Decision")
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		f.Error = err.Error()
	}
	return f
}
