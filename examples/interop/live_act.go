package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// With -live this program is also the applications, each as a process and a user of its own. What one is told to do
// comes on stdin; it does it until stdin ends, and says on stdout, a JSON line each, what happened to it.

// errand is what an application is told.
type errand struct {
	Do     string
	Unix   string        // the service's own socket
	TCP    string        // the shared address
	Token  string        `json:",omitempty"`
	Writes bool          // creates and updates, too
	Loops  int           // of each way to call
	Pause  time.Duration // of each loop, between two calls
	API    string        // the Workload API's socket
	Count  int
	Ward   string // the ingress ward's address
	Ask    string // what to send, where it is not the usual
}

// act is an application.
func act(stdin io.Reader, stdout io.Writer) int {
	var e errand
	d := json.NewDecoder(stdin)
	if err := d.Decode(&e); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, io.MultiReader(d.Buffered(), stdin))
		cancel()
	}()
	do := map[string]func(context.Context, errand, *voice) error{"load": actLoad, "watch": actWatch, "hold": actHold, "streams": actStreams,
		"linger": actLinger, "inherit": actInherit,
		"squat": actSquat, "give": actGive, "take": actTake, "replace": actReplace, "connect": actConnect, "borrow": actBorrow, "trace": actTrace, "flood": actFlood}[e.Do]
	if do == nil {
		fmt.Fprintln(os.Stderr, "nobody does", e.Do)
		return 2
	}
	if err := do(ctx, e, &voice{to: json.NewEncoder(stdout)}); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// voice is how an application says what happened.
type voice struct {
	mu sync.Mutex
	to *json.Encoder
}

// said is one line of an application.
type said struct {
	What     string `json:"what"`
	Way      string `json:"way,omitempty"`
	At       int64  `json:"at"` // when it happened or began, in Unix nanoseconds
	Took     int64  `json:"took,omitempty"`
	Status   int    `json:"status,omitempty"`
	Decision string `json:"decision,omitempty"`
	Text     string `json:"text,omitempty"`
	Error    string `json:"error,omitempty"`
}

func (v *voice) say(s said) {
	if s.At == 0 {
		s.At = time.Now().UnixNano()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.to.Encode(s)
}

// client is one way to call: by the service's socket or the shared address, on a connection that is kept or on a new one
// each time. It retries nothing but what Go's own client retries for everybody: a GET on a kept connection that turns
// out to be dead.
func (e errand) client(way string) *http.Client {
	network, address := "unix", e.Unix
	if strings.HasPrefix(way, "tcp") {
		network, address = "tcp", e.TCP
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		DisableKeepAlives: strings.HasSuffix(way, "once"),
	}}
}

var errStatus = fmt.Errorf("not the status that it should be")

// call makes one call and says how it ended.
func (e errand) call(ctx context.Context, c *http.Client, v *voice, way, method, path, body string, want int) (created string) {
	start := time.Now()
	s := said{What: method, Way: way, At: start.UnixNano()}
	reply, err := func() ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+e.Token)
		if body != "" {
			req.Header.Set("Content-Type", "application/fhir+json")
		}
		resp, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		defer func() { _ = resp.Body.Close() }()
		s.Status, s.Decision = resp.StatusCode, resp.Header.Get("Ward-Decision")
		b, err := io.ReadAll(resp.Body)
		if err == nil && s.Status != want {
			err = fmt.Errorf("%w: %d, not %d: %.300s", errStatus, s.Status, want, bytes.TrimSpace(b))
		}
		return b, err
	}()
	s.Took = int64(time.Since(start))
	if err != nil {
		if ctx.Err() != nil {
			return ""
		}
		s.Error = err.Error()
	}
	v.say(s)
	var r resource
	if err == nil && method == http.MethodPost && json.Unmarshal(reply, &r) == nil {
		return r.ID
	}
	return ""
}

const heartRate = `{"resourceType":"Observation",%s"status":"final","subject":{"reference":"Patient/example"},` +
	`"code":{"coding":[{"system":"http://loinc.org","code":"8867-4"}]},"valueQuantity":{"value":%d,"unit":"/min"}}`

// actLoad calls without a pause that matters: reads, searches, and where it may, creates and updates.
func actLoad(ctx context.Context, e errand, v *voice) error {
	var loops sync.WaitGroup
	for n := range e.Loops {
		for k, way := range []string{"unix kept", "tcp kept", "unix once", "tcp once"} {
			loops.Go(func() {
				c := e.client(way)
				id := ""
				tick := time.NewTicker(e.Pause)
				defer tick.Stop()
				for i := n + 3*k; ; i++ {
					switch {
					case e.Writes && i%10 == 7:
						id = e.call(context.WithoutCancel(ctx), c, v, way, http.MethodPost, "/Observation", fmt.Sprintf(heartRate, "", 60+i%20), 201)
					case e.Writes && i%10 == 9 && id != "":
						e.call(context.WithoutCancel(ctx), c, v, way, http.MethodPut, "/Observation/"+id, fmt.Sprintf(heartRate, `"id":"`+id+`",`, 60+i%20), 200)
					case i%5 == 3:
						e.call(context.WithoutCancel(ctx), c, v, way, http.MethodGet, "/Condition?patient=Patient/example&_count=3", "", 200)
					default:
						e.call(context.WithoutCancel(ctx), c, v, way, http.MethodGet, "/Patient/example", "", 200)
					}
					select {
					case <-tick.C:
					case <-ctx.Done():
						return
					}
				}
			})
		}
	}
	loops.Wait()
	return nil
}
