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
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// errand is what a load generator is asked to do. It is a process of its own, so that what it spends is not taken for a
// proxy's: it reads the errand from its input, says when all is prepared, begins upon a second line, and says how it went.
type errand struct {
	Do      string // keepalive, connect, handshake, rate, hold
	Address string // of the proxy: host:port, or unix: and a path
	Request []byte
	Conns   int
	Warm    time.Duration // before it begins
	For     time.Duration
	Rate    int // calls a second
	// Sources is from how many addresses of 127/8 connections come, so that closed ones do not use up the ports of one.
	Sources     int
	Credentials *credentials // to speak TLS
	// For slow connections: the server hop's address, how many of each kind, and whose name they come in.
	Back          string
	Slow          map[string]int
	Authorization string
}

// tally is how an errand went.
type tally struct {
	Ready  bool // it is prepared, and the rest is not known yet
	Calls  int64
	Bytes  int64 // of replies' bodies
	Failed int64
	Again  int64  // calls that were made anew, for their connection had been closed before
	Why    string // the first failure
	Took   time.Duration
	Delays []time.Duration // from when each call was to be sent to the end of its reply
}

// load is a load generator at work.
type load struct {
	errand
	tls   *tls.Config
	next  atomic.Uint64 // source address
	calls atomic.Int64
	bytes atomic.Int64
	bad   atomic.Int64
	again atomic.Int64
	mu    sync.Mutex
	why   string
}

// runLoad is the program as a load generator.
func runLoad(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	in, l := bufio.NewReader(stdin), &load{}
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &l.errand); err != nil {
		return err
	}
	if l.Credentials != nil {
		if l.tls, err = l.Credentials.config(ctx); err != nil {
			return err
		}
	}
	say := json.NewEncoder(stdout).Encode
	begin := func() error {
		if err := say(tally{Ready: true}); err != nil {
			return err
		}
		_, err := in.ReadBytes('\n')
		return err
	}
	errands := map[string]func(context.Context, func() error) (tally, error){
		"keepalive": l.keepalive, "connect": l.connect, "handshake": l.handshake, "rate": l.rate, "hold": l.hold, "steady": l.steady, "slow": l.slow, "half": l.half}
	do := errands[l.Do]
	if do == nil {
		return fmt.Errorf("nobody knows how to %q", l.Do)
	}
	t, err := do(ctx, begin)
	if err != nil {
		return err
	}
	t.Calls, t.Bytes, t.Failed, t.Why = l.calls.Load(), l.bytes.Load(), l.bad.Load(), l.why
	return say(t)
}

// dial opens one connection, from the next of the source addresses.
func (l *load) dial(ctx context.Context) (net.Conn, error) {
	return l.dialTo(ctx, l.Address, l.tls)
}

func (l *load) dialTo(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	var d net.Dialer
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	} else if l.Sources > 0 {
		n := l.next.Add(1) % uint64(l.Sources)
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)}), 0)) //nolint:gosec // the bits that are meant
		d.Control = lateBind
	}
	c, err := d.DialContext(ctx, network, address)
	if err != nil || config == nil {
		return c, err
	}
	t := tls.Client(c, config)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return t, nil
}

func (l *load) failed(err error) {
	l.bad.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == "" {
		l.why = err.Error()
	}
}

// open opens all connections and makes a call on each, before the errand begins.
func (l *load) open(ctx context.Context) ([]*caller, error) {
	callers := make([]*caller, l.Conns)
	err := l.each(16, len(callers), func(i int) error {
		c, err := l.dial(ctx)
		if err != nil {
			return err
		}
		callers[i] = newCaller(c)
		_, err = callers[i].call(l.Request)
		return err
	})
	return callers, err
}

// each does the same for all of n, so many at a time. It gives the first error.
func (l *load) each(atOnce, n int, do func(i int) error) error {
	var next atomic.Int64
	var first atomic.Pointer[error]
	var all sync.WaitGroup
	for range min(atOnce, n) {
		all.Go(func() {
			for first.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(i); err != nil {
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	all.Wait()
	if err := first.Load(); err != nil {
		return *err
	}
	return nil
}

// keepalive calls on all connections, each as often as it can.
func (l *load) keepalive(ctx context.Context, begin func() error) (t tally, err error) {
	callers, err := l.open(ctx)
	if err != nil {
		return t, err
	}
	l.hammer(callers, l.Warm)
	l.calls.Store(0)
	l.bytes.Store(0)
	if err := begin(); err != nil {
		return t, err
	}
	t.Took = l.hammer(callers, l.For)
	return t, nil
}

// hammer has everybody call over and over for a while, once at least.
func (l *load) hammer(callers []*caller, how time.Duration) time.Duration {
	start := time.Now()
	if how == 0 {
		return 0
	}
	var all sync.WaitGroup
	for _, c := range callers {
		all.Go(func() {
			for more := true; more; more = time.Since(start) < how {
				n, err := c.call(l.Request)
				if err != nil {
					l.failed(err)
					return
				}
				l.calls.Add(1)
				l.bytes.Add(n)
			}
		})
	}
	all.Wait()
	return time.Since(start)
}

// connect opens a connection for each call.
func (l *load) connect(ctx context.Context, begin func() error) (tally, error) {
	return l.repeat(begin, func() error {
		c, err := l.dial(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		n, err := newCaller(c).call(l.Request)
		l.bytes.Add(n)
		return err
	})
}

// handshake makes full handshakes and takes its leave at once. The server has done all of its part when it, too, has
// said so: in TLS 1.3 a client is done before the server has looked at its certificate.
func (l *load) handshake(ctx context.Context, begin func() error) (tally, error) {
	return l.repeat(begin, func() error {
		c, err := l.dial(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := errors.Join(c.SetDeadline(time.Now().Add(patience)), c.(*tls.Conn).CloseWrite()); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, c) // some send words of farewell
		return err
	})
}

// repeat does something over and over, in as many places at once as there are connections.
func (l *load) repeat(begin func() error, do func() error) (t tally, err error) {
	if err := do(); err != nil {
		return t, err
	}
	if err := begin(); err != nil {
		return t, err
	}
	start := time.Now()
	var all sync.WaitGroup
	for range l.Conns {
		all.Go(func() {
			for time.Since(start) < l.For && l.bad.Load() == 0 {
				if err := do(); err != nil {
					l.failed(err)
					return
				}
				l.calls.Add(1)
			}
		})
	}
	all.Wait()
	t.Took = time.Since(start)
	return t, nil
}

// hold opens connections, makes a call on each and leaves them open. It says that it is prepared twice: before the first
// connection, and when all are open.
func (l *load) hold(ctx context.Context, begin func() error) (t tally, err error) {
	if err := begin(); err != nil {
		return t, err
	}
	callers, err := l.open(ctx)
	if err != nil {
		return t, err
	}
	for _, c := range callers {
		c.buf = nil
	}
	if err := begin(); err != nil {
		return t, err
	}
	for _, c := range callers {
		_ = c.Close()
	}
	return t, nil
}
