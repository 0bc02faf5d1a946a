package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// The applications that hold connections and tell when they are cut.

// watcher passes on what the Workload API says.
type watcher struct {
	got    func(*workloadapi.X509Context)
	failed func(error)
}

func (w watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.got(c) }
func (w watcher) OnX509ContextWatchError(err error)              { w.failed(err) }

// actWatch tells of each new SVID.
func actWatch(ctx context.Context, e errand, v *voice) error {
	return workloadapi.WatchX509Context(ctx, watcher{
		got:    func(c *workloadapi.X509Context) { v.say(said{What: "svid", Text: c.DefaultSVID().ID.String()}) },
		failed: func(err error) { v.say(said{What: "refused", Error: err.Error()}) },
	}, workloadapi.WithAddr(e.API))
}

// actHold keeps one connection to each role, tells when each is cut, and begins again.
func actHold(ctx context.Context, e errand, v *voice) error {
	for ctx.Err() == nil {
		if err := e.holdAll(ctx, v); err != nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (e errand) holdAll(ctx context.Context, v *voice) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, cut := make(chan *workloadapi.X509Context, 1), make(chan string, 8)
	go func() {
		_ = workloadapi.WatchX509Context(ctx, watcher{
			got: func(c *workloadapi.X509Context) {
				select {
				case first <- c:
				default:
				}
			},
			failed: func(error) {
				if ctx.Err() == nil {
					v.say(said{What: "cut", Way: "agent"})
					cut <- "agent"
					cancel()
				}
			},
		}, workloadapi.WithAddr(e.API))
	}()
	var c *workloadapi.X509Context
	select {
	case c = <-first:
	case <-ctx.Done():
		return ctx.Err()
	}
	local, err := net.Dial("unix", e.Unix)
	if err != nil {
		return err
	}
	defer func() { _ = local.Close() }()
	ward := spiffeid.RequireFromString("spiffe://" + domain + "/ward/ehr")
	config := tlsconfig.MTLSClientConfig(c.DefaultSVID(), c.Bundles, tlsconfig.AuthorizeID(ward))
	config.NextProtos = []string{"http/1.1"}
	far, err := tls.Dial("tcp", e.Ward, config)
	if err != nil {
		return err
	}
	defer func() { _ = far.Close() }()
	if err := errors.Join(exchange(local, e.Token, 200), exchange(far, e.Token, 200)); err != nil {
		return err
	}
	for name, conn := range map[string]net.Conn{"egress": local, "ingress": far} {
		go func() {
			_, _ = conn.Read(make([]byte, 1))
			v.say(said{What: "cut", Way: name})
			cut <- name
		}()
	}
	v.say(said{What: "ready"})
	for range 3 {
		<-cut
	}
	return nil
}

// exchange makes one call on a connection, and leaves it open.
func exchange(c net.Conn, token string, want int) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET /Patient/example HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", mesh, token); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%w: %d, not %d", errStatus, resp.StatusCode, want)
	}
	return c.SetDeadline(time.Time{})
}

// actLinger makes a call, gives its connection to a child, and goes: it exits, or becomes another program. The child
// tells when the connection is cut.
func actLinger(_ context.Context, e errand, v *voice) error {
	conn, err := net.Dial("unix", e.Unix)
	if err != nil {
		return err
	}
	if err := exchange(conn, e.Token, 200); err != nil {
		return err
	}
	held, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", "act")
	child.Stdin, child.Stdout, child.Stderr, child.ExtraFiles = in, os.Stdout, os.Stderr, []*os.File{held, tell}
	if err := child.Start(); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(errand{Do: "inherit"}); err != nil {
		return err
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return err
	}
	v.say(said{What: "going"})
	if e.Ask == "exec" {
		return syscall.Exec("/bin/sleep", []string{"sleep", "30"}, nil)
	}
	os.Exit(0)
	return nil
}

// actInherit has a connection of its parent's.
func actInherit(_ context.Context, _ errand, v *voice) error {
	conn, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		return err
	}
	if _, err := os.NewFile(4, "parent").Write([]byte{1}); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		v.say(said{What: "kept"})
		return nil
	}
	v.say(said{What: "cut"})
	return nil
}

// actStreams opens so many streams of the Workload API, each on a connection of its own.
func actStreams(ctx context.Context, e errand, v *voice) error {
	open := make(chan struct{}, e.Count)
	for range e.Count {
		go func() {
			first := true
			_ = workloadapi.WatchX509Context(ctx, watcher{
				got: func(*workloadapi.X509Context) {
					if first {
						first = false
						open <- struct{}{}
					}
				},
				failed: func(error) {},
			}, workloadapi.WithAddr(e.API))
		}()
	}
	for range e.Count {
		select {
		case <-open:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	v.say(said{What: "open"})
	<-ctx.Done()
	return nil
}
