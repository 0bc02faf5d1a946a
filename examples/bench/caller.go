package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// caller is one connection of an application, with a client that knows as little of HTTP as it can: what it spends is
// taken from the processors that the proxies share with it.
type caller struct {
	net.Conn
	buf   []byte
	head  []byte // of the latest reply
	began bool   // there was a byte of it
}

func newCaller(c net.Conn) *caller { return &caller{Conn: c, buf: make([]byte, 32<<10)} }

// call sends the request and reads the whole reply, which must be a 200. It gives the length of the body.
func (c *caller) call(request []byte) (int64, error) {
	c.began = false
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	return c.reply()
}

// reply reads one reply. Nothing may follow it: no request is on its way.
func (c *caller) reply() (int64, error) {
	have, end := 0, -1
	for end < 0 {
		if have == len(c.buf) {
			return 0, errors.New("the reply's head is too long")
		}
		n, err := c.Read(c.buf[have:])
		if err != nil {
			return 0, err
		}
		have, c.began = have+n, true
		end = bytes.Index(c.buf[:have], []byte("\r\n\r\n"))
	}
	c.head = append(c.head[:0], c.buf[:end+2]...)
	length, err := bodyLength(c.head)
	if err != nil {
		return 0, err
	}
	left := length - int64(have-end-4)
	for left > 0 {
		n, err := c.Read(c.buf)
		if err != nil {
			return 0, err
		}
		left -= int64(n)
	}
	if left < 0 {
		return 0, errors.New("there is more than the reply")
	}
	return length, nil
}

// bodyLength reads status and Content-Length from a head whose lines all end in CRLF.
func bodyLength(head []byte) (int64, error) {
	status, rest, _ := strings.Cut(string(head), "\r\n")
	if !strings.HasPrefix(status, "HTTP/1.1 200") {
		return 0, fmt.Errorf("the answer is %q", status)
	}
	for line := range strings.SplitSeq(rest, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Content-Length") {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, errors.New("the reply has no Content-Length")
}
