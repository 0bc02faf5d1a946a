package http1

import (
	"net/http"
	"strconv"
)

// What cannot be written, because it would not be read.
var (
	errPutMethod = &Error{400, "the method to be sent is no token, or too long"}
	errPutTarget = &Error{400, "the request target to be sent is no path, or has a byte or an escape that may not be there"}
	errPutName   = &Error{400, "the name of a field to be sent is no token"}
	errPutValue  = &Error{400, "the value of a field to be sent has a byte that may not be there, or white space around it"}
)

// AppendRequestLine appends a request line. It refuses a method that is no token and a target that is none in origin-form,
// the only one that is sent (RFC 9112 §3.2.1): whoever could put a space or a line's end into either would write a
// request of his own.
func AppendRequestLine(dst []byte, method, target string) ([]byte, error) {
	if !all(method, token) || len(method) > maxMethod {
		return dst, errPutMethod
	}
	if !all(target, reqTarget) || target[0] != '/' || !escapes(target) {
		return dst, errPutTarget
	}
	dst = append(dst, method...)
	dst = append(dst, ' ')
	dst = append(dst, target...)
	return append(dst, " HTTP/1.1\r\n"...), nil
}

// AppendStatusLine appends a status line. What is no status becomes 500.
func AppendStatusLine(dst []byte, status int) []byte {
	if status < 100 || status > 599 {
		status = http.StatusInternalServerError
	}
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ') // RFC 9112 §4: also where no reason follows
	dst = append(dst, http.StatusText(status)...)
	return append(dst, "\r\n"...)
}

// AppendField appends a field line. It refuses what is no field (RFC 9110 §5): a name that is no token, a value with
// a control byte, above all CR, LF and NUL, or with white space around it, which no reader would take for a part of it.
func AppendField(dst []byte, name, value string) ([]byte, error) {
	if !all(name, token) {
		return dst, errPutName
	}
	if !isValue(value) {
		return dst, errPutValue
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...), nil
}

// AppendLength appends the field that gives a body's length; n is not negative.
func AppendLength(dst []byte, n int64) []byte {
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, max(n, 0), 10)
	return append(dst, "\r\n"...)
}

// AppendChunk appends the size line of a chunk of n bytes; they and a CRLF follow. A chunk of 0 bytes is the last: the
// CRLF behind it ends the body.
func AppendChunk(dst []byte, n int) []byte {
	dst = strconv.AppendInt(dst, int64(max(n, 0)), 16)
	return append(dst, "\r\n"...)
}

// all reports whether s consists of bytes of the class, and of one at least.
func all(s string, class uint8) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return len(s) > 0
}

func isValue(s string) bool {
	if s == "" {
		return true
	}
	edge := func(c byte) bool { return c == ' ' || c == '\t' }
	return all(s, text) && !edge(s[0]) && !edge(s[len(s)-1])
}
