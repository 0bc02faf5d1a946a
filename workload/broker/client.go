package broker

import (
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/wardmesh/ward/attest"
	"github.com/wardmesh/ward/workload"
)

// ClientOptions is what a Client is made of. Socket, Verify and Log are required.
type ClientOptions struct {
	Socket string               // path of the agent's Broker API socket; always explicit, so that BE §4's variable has no say
	Verify func(net.Conn) error // nil for a connection behind which the agent is; see ServedBy
	Log    *zap.Logger

	Wait time.Duration // how long Borrow waits for an agent that is away, where its context has no deadline; 0 stands for 5 s
	Idle int           // how many processes' loans are kept when nobody uses them; 0 stands for 64
	Keep time.Duration // how long they are kept; 0 stands for 1 min

	// Fresh is how long the agent's word about a process stands for another (BorrowSeen); 0 stands for 100 ms.
	Fresh time.Duration
}

// Client borrows identities from this host's agent, over one connection that is made anew when the agent has been away.
// Its methods may be called from many goroutines.
type Client struct {
	identities *identities
	o          ClientOptions
	conn       *grpc.ClientConn
	api        spiffe.APIClient
	away       atomic.Bool // the agent was last seen not to answer
	fooled     atomic.Bool // somebody else was last seen behind the socket

	ctx   context.Context
	end   context.CancelFunc
	tasks sync.WaitGroup

	mu     sync.Mutex
	closed bool
	known  map[attest.ProcessReference]*line // those of processes, in use or idle
	idle   list.List                         // of *line, the longest idle first
	lines  int                               // all that are open

	doubted time.Time // what the agent was asked before stands for nothing any more
}

// The pauses of gRPC between two attempts to connect. Dialling a local socket costs next to nothing.
const firstDial, lastDial = 30 * time.Millisecond, 200 * time.Millisecond

// NewClient does not connect yet: the agent may start later than its brokers.
func NewClient(o ClientOptions) (*Client, error) {
	if o.Socket == "" || o.Verify == nil || o.Log == nil {
		return nil, errors.New("workload broker: a socket, a check of who serves it, and a log are all needed")
	}
	if o.Wait < 0 || o.Idle < 0 || o.Keep < 0 || o.Fresh < 0 {
		return nil, errors.New("workload broker: a negative bound")
	}
	for _, d := range []struct {
		field   *time.Duration
		initial time.Duration
	}{{&o.Wait, 5 * time.Second}, {&o.Keep, time.Minute}, {&o.Fresh, 100 * time.Millisecond}} {
		if *d.field == 0 {
			*d.field = d.initial
		}
	}
	if o.Idle == 0 {
		o.Idle = 64
	}
	c := &Client{o: o, identities: newIdentities(), known: make(map[attest.ProcessReference]*line)}
	var err error
	c.conn, err = grpc.NewClient("passthrough:///ward-agent",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", o.Socket)
		}),
		grpc.WithTransportCredentials(served{verify: c.verify}),
		grpc.WithAuthority("localhost"),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0), // persistent: BA §4.3
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstDial, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastDial},
			MinConnectTimeout: 2 * time.Second,
		}),
		// An agent that hangs is told from one that has nothing to say.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithStaticStreamWindowSize(64<<10),
		grpc.WithStaticConnWindowSize(1*mebibyte),
	)
	if err != nil {
		return nil, err
	}
	c.api = spiffe.NewAPIClient(c.conn)
	c.ctx, c.end = context.WithCancel(context.Background())
	c.conn.Connect()
	return c, nil
}

// verify looks at who is behind the socket, and tells the operator once when it is somebody else.
func (c *Client) verify(conn net.Conn) error {
	err := c.o.Verify(conn)
	if before := c.fooled.Swap(err != nil); err != nil && !before {
		c.o.Log.Error("the agent's socket is not the agent's", zap.String("socket", c.o.Socket), zap.Error(err))
	}
	return err
}

// Borrow returns the identity of the process that ref names, on the word of a live agent given after the call. While the
// agent is away it waits for it: until ctx ends, or for Wait where ctx has no deadline.
//
// The error is ctx's if it was cancelled, or a *workload.Refusal whose Reference is that of the agent's own report, if
// it made one. By errors.Is it is workload.ErrUnavailable when the agent did not answer or has no SVID at the moment;
// workload.ErrNoIdentity when no entry with proxy: true is meant for the process, and workload.ErrDenied as well when
// one was and its ID is denied; attest.ErrExited, ErrReplaced, ErrMismatch or ErrReference when ref does not, or no
// longer, name a process soundly; workload.ErrNotBroker when this process itself is refused; workload.ErrClosed after
// Close.
func (c *Client) Borrow(ctx context.Context, ref attest.Reference) (*Loan, error) {
	return c.BorrowSeen(ctx, ref, attest.Standing{})
}

// BorrowSeen is Borrow for a process that has just been seen to stand so, by the same pinner as before. The agent's word is
// not asked for again where it has been given about this process standing the same, upon a question that is not older than
// Fresh, and the agent has been heard ever since; see word.
func (c *Client) BorrowSeen(ctx context.Context, ref attest.Reference, standing attest.Standing) (*Loan, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.o.Wait)
		defer cancel()
	}
	for {
		asked := time.Now()
		l, fresh, err := c.line(ref)
		if err != nil {
			return nil, err
		}
		switch {
		case fresh:
			if err = l.first(ctx); err == nil {
				l.vouch(standing, asked)
			}
		case !l.vouched(standing, asked):
			err = l.confirm(ctx, standing)
		}
		switch {
		case err == nil:
			return &Loan{line: l}, nil
		case errors.Is(err, errStale):
			c.release(l)
			continue // its process is another program by now: a new line asks who
		}
		c.release(l)
		return nil, err
	}
}

// line returns the line of a process, or a new one, with one more user.
func (c *Client) line(ref attest.Reference) (l *line, fresh bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, &workload.Refusal{Err: workload.ErrClosed}
	}
	p := ref.Process
	if l := c.known[p]; l != nil && ref.Conn == (attest.ConnReference{}) {
		if !l.over() {
			l.users++
			c.rouse(l)
			return l, false, nil
		}
		c.forget(l)
	}
	packed, err := Pack(ref)
	if err != nil {
		return nil, false, &workload.Refusal{Err: err}
	}
	l = newLine(c, p, packed)
	l.users = 1
	if p != (attest.ProcessReference{}) {
		c.known[p] = l
	}
	c.lines++
	ctx, cancel := context.WithCancel(c.ctx)
	l.cancel = cancel
	c.tasks.Go(func() { l.run(ctx) })
	return l, true, nil
}

// release gives a line back. That of a process stays for a while, because processes call again.
func (c *Client) release(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	if c.known[l.process] != l || l.Err() != nil {
		c.drop(l)
		return
	}
	l.place = c.idle.PushBack(l)
	l.timer = time.AfterFunc(c.o.Keep, func() { c.expire(l) })
	if c.idle.Len() > c.o.Idle {
		c.drop(c.idle.Front().Value.(*line))
	}
}

// expire drops a line that is still idle.
func (c *Client) expire(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.users == 0 && l.place != nil {
		c.drop(l)
	}
}

// rouse takes a line from among the idle ones.
func (c *Client) rouse(l *line) {
	if l.place != nil {
		c.idle.Remove(l.place)
		l.place = nil
		l.timer.Stop()
	}
}

// forget makes l be nobody's answer any more.
func (c *Client) forget(l *line) {
	if c.known[l.process] == l {
		delete(c.known, l.process)
	}
}

// retire keeps l for those who use it, and gives it to nobody else.
func (c *Client) retire(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(l)
}

// drop ends a line that nobody uses.
func (c *Client) drop(l *line) {
	c.rouse(l)
	c.forget(l)
	l.cancel()
}

// ended is called by a line at its end, which may come while it is in use or idle.
func (c *Client) ended(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines--
	c.rouse(l)
	c.forget(l)
	l.cancel()
}

// ClientStatus is what a client knows of its agent.
type ClientStatus struct {
	Away  bool // the agent did not answer when it was last asked
	Lines int  // processes and connections whose identity is kept up to date
	Idle  int  // of those, the ones that nobody uses
}

// Status tells how things stand.
func (c *Client) Status() ClientStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ClientStatus{Away: c.away.Load(), Lines: c.lines, Idle: c.idle.Len()}
}

// Close ends every loan with workload.ErrClosed and returns when nothing of the client runs any more.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.tasks.Wait()
	return c.conn.Close()
}

// subscribe passes on every answer until the server ends the stream, take fails, or ctx ends. It is never nil.
func (c *Client) subscribe(ctx context.Context, packed *spiffe.WorkloadReference, take func(*spiffe.SubscribeToX509SVIDResponse) error) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, header, "true")) // BE §3
	defer cancel()
	stream, err := c.api.SubscribeToX509SVID(ctx, &spiffe.SubscribeToX509SVIDRequest{Reference: packed}, grpc.WaitForReady(true))
	for err == nil {
		var m *spiffe.SubscribeToX509SVIDResponse
		if m, err = stream.Recv(); err == nil {
			c.seen(nil)
			if err := take(m); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r := refusalOf(err)
	c.seen(r)
	return r
}

// seen logs when the agent goes away and comes back, once each.
func (c *Client) seen(r *workload.Refusal) {
	switch gone := r != nil && !final(r); {
	case c.ctx.Err() != nil:
	case gone && r.Reference != "": // it is there, and says that it has no SVID now
	case gone && c.away.CompareAndSwap(false, true):
		c.o.Log.Warn("the agent's Broker API does not answer: identities in use are kept while they are valid, new callers wait", zap.String("socket", c.o.Socket), zap.Error(r.Err))
	case !gone && c.away.CompareAndSwap(true, false):
		c.o.Log.Info("the agent's Broker API answers again", zap.String("socket", c.o.Socket))
	}
}

// retries paces attempts on the same reference: at once first, then with pauses that double, each spread by a half.
type retries struct{ n int }

const firstRetry, lastRetry = 20 * time.Millisecond, time.Second

// pause waits for the next attempt; it is false when ctx has ended.
func (r *retries) pause(ctx context.Context) bool {
	d := min(firstRetry<<min(r.n, 10), lastRetry)
	d = d/2 + rand.N(d)
	r.n++
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
