package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// The attackers: each tries, and says for each thing that it tried why it did not work.

func (v *voice) tried(what, way string, err error) {
	s := said{What: what, Way: way}
	if err != nil {
		s.Error = strings.ReplaceAll(err.Error(), "\n", " ")
	}
	v.say(s)
}

// actSquat listens where somebody else did, and tells what it is sent.
func actSquat(ctx context.Context, e errand, v *voice) error {
	ln, err := net.Listen("tcp", e.Ask)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	v.say(said{What: "listening"})
	var reading sync.WaitGroup
	defer reading.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		v.say(said{What: "connection"})
		reading.Go(func() {
			defer func() { _ = c.Close() }()
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
			b := make([]byte, 4096)
			if n, _ := c.Read(b); n > 0 {
				v.say(said{What: "bytes", Text: string(b[:n])})
			}
		})
	}
}

// actGive opens a connection, uses it, and gives it away.
func actGive(ctx context.Context, e errand, _ *voice) error {
	conn, err := net.Dial("unix", e.Unix)
	if err != nil {
		return err
	}
	if err := exchange(conn, e.Token, 200); err != nil {
		return err
	}
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{1}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return err
	}
	time.Sleep(20 * time.Second) // the portal lives on
	return nil
}

// actTake speaks on a connection that another user's process has opened.
func actTake(_ context.Context, e errand, v *voice) error {
	conn, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		return err
	}
	v.tried("taken", "", exchange(conn, e.Token, 200))
	return nil
}

// actReplace wants to be behind a socket.
func actReplace(_ context.Context, e errand, v *voice) error {
	dir := filepath.Dir(e.Ask)
	v.tried("remove", e.Ask, os.Remove(e.Ask))
	v.tried("rename", e.Ask, os.Rename(e.Ask, e.Ask+".old"))
	v.tried("rename", dir, os.Rename(dir, dir+".old"))
	v.tried("chmod", dir, os.Chmod(dir, 0o777))
	ln, err := net.Listen("unix", filepath.Join(dir, "other.sock"))
	if err == nil {
		_ = ln.Close()
	}
	v.tried("listen beside", e.Ask, err)
	v.say(said{What: "done"})
	return nil
}

// actConnect wants to be heard on sockets, divided by spaces.
func actConnect(_ context.Context, e errand, v *voice) error {
	for _, socket := range strings.Fields(e.Ask) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		v.tried("connect", socket, err)
	}
	v.say(said{What: "done"})
	return nil
}

// actBorrow asks the broker for identities, by references that name a process soundly and by others.
func actBorrow(ctx context.Context, e errand, v *voice) error {
	conn, err := grpc.NewClient("unix://"+strings.Fields(e.Ask)[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	pid, err := strconv.Atoi(strings.Fields(e.Ask)[1])
	if err != nil {
		return err
	}
	victim := int32(pid) //nolint:gosec // a pid fits
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var here unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &here); err != nil {
		return err
	}
	bare, err := anypb.New(&broker.WorkloadPIDReference{Pid: victim})
	if err != nil {
		return err
	}
	// Ward's own kind of reference (workload/broker/wardref), as somebody writes it who has read its description.
	process := func(inode, uid uint64) *anypb.Any {
		return wardReference(nested(nil, 1, numbers(nil, 1, uint64(victim), inode, uid, uid)))
	}
	loopback := func(port uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nested(nil, 1, []byte{127, 0, 0, 1}), 2, protowire.VarintType), port)
	}
	connection := numbers(nested(nested(nil, 1, loopback(40000)), 2, loopback(80)), 3, 1, here.Ino)
	for _, c := range []struct {
		name string
		ref  *anypb.Any
	}{
		{"no reference", nil},
		{"a bare pid", bare},
		{"a pid with another's inode", process(st.Ino+1, uidEHR)},
		{"a process under another uid", process(st.Ino, uidPortal)},
		{"a connection that there is not", wardReference(nested(nil, 2, connection))},
	} {
		v.tried("borrow by", c.name, borrow(ctx, conn, c.ref))
	}
	v.say(said{What: "done"})
	return nil
}

func wardReference(message []byte) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/ward.broker.v1.Reference", Value: message}
}

// nested appends a field of bytes, which may be another message; numbers appends fields from the given one on.
func nested(b []byte, field protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), value)
}

func numbers(b []byte, field protowire.Number, values ...uint64) []byte {
	for _, v := range values {
		b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
		field++
	}
	return b
}

func borrow(ctx context.Context, conn *grpc.ClientConn, ref *anypb.Any) error {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true"), 10*time.Second)
	defer cancel()
	request := &broker.SubscribeToX509SVIDRequest{}
	if ref != nil {
		request.Reference = &broker.WorkloadReference{Reference: ref}
	}
	stream, err := broker.NewAPIClient(conn).SubscribeToX509SVID(ctx, request)
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// actTrace wants to take the place of other processes' threads, by pid.
func actTrace(_ context.Context, e errand, v *voice) error {
	for _, f := range strings.Fields(e.Ask) {
		name, number, _ := strings.Cut(f, ":")
		pid, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		v.tried("ptrace", name, syscall.PtraceAttach(pid))
		_, err = os.ReadFile(fmt.Sprintf("/proc/%d/mem", pid))
		v.tried("memory of", name, err)
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			_, err = unix.PidfdGetfd(fd, 3, 0)
		}
		v.tried("descriptors of", name, err)
	}
	v.say(said{What: "done"})
	return nil
}

// actFlood makes calls that are all refused: with an answer, or by a connection that is cut.
func actFlood(_ context.Context, e errand, v *voice) error {
	const width = 8
	var mu sync.Mutex
	got := map[string]int{}
	var floods sync.WaitGroup
	for range width {
		floods.Go(func() {
			mine := map[string]int{}
			for left := e.Count / width; left > 0; {
				left -= refusals(e.Unix, left, mine)
			}
			mu.Lock()
			defer mu.Unlock()
			for how, n := range mine {
				got[how] += n
			}
		})
	}
	floods.Wait()
	if got["200"] > 0 {
		v.tried("flood", "", nil)
	} else {
		v.tried("flood", "", errors.New(strings.TrimPrefix(fmt.Sprint(got), "map")))
	}
	v.say(said{What: "done"})
	return nil
}

// refusals makes at most so many calls on one connection, as long as it lasts, and counts what comes of them.
func refusals(socket string, most int, got map[string]int) (made int) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		got["not connected"]++
		return 1
	}
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for made < most {
		made++
		var resp *http.Response
		if _, err = fmt.Fprintf(c, "GET /Patient/example HTTP/1.1\r\nHost: %s\r\n\r\n", mesh); err == nil {
			resp, err = http.ReadResponse(r, nil)
		}
		if err != nil {
			got["cut"]++
			return made
		}
		got[strconv.Itoa(resp.StatusCode)]++
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
			return made
		}
	}
	return made
}
