package wire_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wardmesh/ward/proxy/wire"
)

const shortReply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// overPipes makes a client of a server on pipes, so that all waiting is in the test's own time. The server answers a request
// with what may come from answers, and tells ended of each connection that the client closes.
func overPipes(o wire.ClientOptions, answers <-chan string) (c *wire.Client, dialled *int, ended chan int) {
	dialled, ended = new(int), make(chan int, 100)
	o.Dial = func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		*dialled++
		n := *dialled
		go func() {
			defer func() { ended <- n }()
			defer func() { _ = far.Close() }()
			in := bufio.NewReader(far)
			for {
				if _, err := readHead(in); err != nil {
					return
				}
				if _, err := io.WriteString(far, <-answers); err != nil {
					return
				}
			}
		}()
		return near, nil
	}
	return wire.NewClient(o), dialled, ended
}

func get200(ctx context.Context, c *wire.Client) error {
	r, err := c.RoundTrip(ctx, &wire.Request{Method: "GET", Target: "/", Host: "a"})
	if err != nil {
		return err
	}
	_, err = io.ReadAll(r.Body)
	return errors.Join(err, r.Body.Close())
}

// Beyond MaxConns calls wait, are served in the order in which they came, and give up with their context; the place of who
// has given up goes to the next.
func TestMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan string)
		c, dialled, _ := overPipes(wire.ClientOptions{MaxConns: 1}, answers)
		type end struct {
			who int
			err error
		}
		ends := make(chan end, 10)
		call := func(ctx context.Context, who int) {
			go func() { ends <- end{who, get200(ctx, c)} }()
			synctest.Wait()
		}
		want := func(who int, err error) {
			t.Helper()
			synctest.Wait()
			select {
			case e := <-ends:
				if e.who != who || !errors.Is(e.err, err) {
					t.Errorf("call %d ended with %v; wanted %d and %v", e.who, e.err, who, err)
				}
			default:
				t.Fatalf("call %d has not ended", who)
			}
		}
		second, giveUp := context.WithCancel(t.Context())
		third, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		call(t.Context(), 1)
		call(second, 2)
		call(third, 3)
		call(t.Context(), 4)
		call(t.Context(), 5)
		giveUp()
		want(2, context.Canceled)
		time.Sleep(time.Minute) // of the bubble
		want(3, context.DeadlineExceeded)
		for _, who := range []int{1, 4, 5} {
			answers <- shortReply
			want(who, nil)
		}
		if *dialled != 1 {
			t.Errorf("%d connections", *dialled)
		}
		// One that ends gives its place to the next, who opens another.
		call(t.Context(), 6)
		call(t.Context(), 7)
		answers <- "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
		want(6, nil)
		answers <- shortReply
		want(7, nil)
		if *dialled != 2 {
			t.Errorf("%d connections, want 2", *dialled)
		}
		c.CloseIdle()
	})
}

// A connection that nobody needs is closed in time, whether it is taken again or not, and so is one that has become old.
func TestKeptConnectionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan string, 100)
		for range 100 {
			answers <- shortReply
		}
		c, dialled, ended := overPipes(wire.ClientOptions{IdleTimeout: time.Minute, MaxAge: 10 * time.Minute}, answers)
		call := func() {
			t.Helper()
			if err := get200(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		call()
		for range 3 { // each use begins its minute anew
			time.Sleep(59 * time.Second)
			call()
		}
		if *dialled != 1 {
			t.Fatalf("%d connections", *dialled)
		}
		used := time.Now()
		if n := <-ended; n != 1 || time.Since(used) != time.Minute {
			t.Errorf("connection %d ended %s after it was used", n, time.Since(used))
		}
		begun := time.Now()
		for *dialled < 3 {
			call()
			time.Sleep(10 * time.Second)
		}
		<-ended
		if age := time.Since(begun); age < 9*time.Minute || age > 10*time.Minute+10*time.Second {
			t.Errorf("a connection in use was given calls for %s", age)
		}
		c.CloseIdle()
	})
}

// What was opened together does not end together.
func TestAgesDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan string)
		c, _, ended := overPipes(wire.ClientOptions{MaxAge: time.Hour, IdleTimeout: 2 * time.Hour}, answers)
		const n = 50
		done := make(chan error, n)
		for range n {
			go func() { done <- get200(t.Context(), c) }()
			synctest.Wait()
		}
		begun := time.Now()
		for range n {
			answers <- shortReply
		}
		for range n {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		ages := map[time.Duration]bool{}
		for range n {
			<-ended
			age := time.Since(begun)
			if age < 54*time.Minute || age > time.Hour {
				t.Errorf("one ended after %s", age)
			}
			ages[age.Round(time.Second)] = true
		}
		if len(ages) < n/2 {
			t.Errorf("%d connections ended at %d times", n, len(ages))
		}
	})
}
