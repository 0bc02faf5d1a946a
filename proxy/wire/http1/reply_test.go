package http1

import (
	"strings"
	"testing"
)

// replyRow is a reply, and what it is read as; "" where it is refused.
type replyRow struct{ name, method, in, want, body string }

func replyRows() []replyRow {
	const ok = "HTTP/1.1 200 OK\r\n"
	rows := []replyRow{
		{"a length", "GET", ok + "Content-Length: 2\r\n\r\nab", `200 1.1 length 2 declared 2 [Content-Length="2"]`, "ab"},
		{"chunks", "GET", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX: y\r\n\r\n", `200 1.1 length -1 declared -1 [Transfer-Encoding="chunked"]`, "ab"},
		{"RFC 9112 6.3 rule 8: until the end", "GET", ok + "\r\nab", `200 1.1 length -2 declared -1 close []`, "ab"},
		{"RFC 9112 6.3 rule 8: in HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nab", `200 1.0 length -2 declared -1 close [Connection="keep-alive"]`, "ab"},
		{"RFC 9112 9.3 a length in HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", `200 1.0 length 1 declared 1 close [Content-Length="1"]`, "a"},
		{"RFC 9112 9.3 close", "GET", ok + "Connection: CLOSE\r\nContent-Length: 0\r\n\r\n", `200 1.1 length 0 declared 0 close [Connection="CLOSE" Content-Length="0"]`, ""},
		{"RFC 9112 4 no reason", "GET", "HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", `404 1.1 length 0 declared 0 [Content-Length="0"]`, ""},
		{"RFC 9112 4 a reason in another script", "GET", "HTTP/1.1 404 \xe6\x97\xa0\t.\r\nContent-Length: 0\r\n\r\n", `404 1.1 length 0 declared 0 [Content-Length="0"]`, ""},
		{"RFC 9110 15 a status of nobody's", "GET", "HTTP/1.1 599 x\r\nContent-Length: 0\r\n\r\n", `599 1.1 length 0 declared 0 [Content-Length="0"]`, ""},
		{"7 RFC 9112 6.3 rule 1: HEAD", "HEAD", ok + "Content-Length: 5\r\n\r\n", `200 1.1 length 0 declared 5 [Content-Length="5"]`, ""},
		{"7 RFC 9112 6.3 rule 1: HEAD and chunks", "HEAD", ok + "Transfer-Encoding: chunked\r\n\r\n", `200 1.1 length 0 declared -1 [Transfer-Encoding="chunked"]`, ""},
		{"7 RFC 9112 6.3 rule 1: HEAD without a length", "HEAD", ok + "\r\n", `200 1.1 length 0 declared -1 []`, ""},
		{"7 RFC 9112 6.3 rule 1: 204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", `204 1.1 length 0 declared -1 []`, ""},
		{"7 RFC 9112 6.3 rule 1: 204 and a length of 0", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", `204 1.1 length 0 declared 0 [Content-Length="0"]`, ""},
		{"7 RFC 9112 6.3 rule 1: 304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", `304 1.1 length 0 declared 5 [Content-Length="5"]`, ""},
		{"7 RFC 9112 6.3 rule 1: 100", "GET", "HTTP/1.1 100 Continue\r\n\r\n", `100 1.1 length 0 declared -1 []`, ""},
		{"7 RFC 9112 6.3 rule 1: 103", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", `103 1.1 length 0 declared -1 [Link="</x>"]`, ""},
	}
	for name, in := range map[string]string{
		"1 RFC 9112 6.1 both":                           ok + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"2 RFC 9112 6.3 two lengths":                    ok + "Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
		"2 RFC 9112 6.3 a list of lengths":              ok + "Content-Length: 1, 1\r\n\r\n",
		"2 RFC 9110 8.6 a signed length":                ok + "Content-Length: +1\r\n\r\n",
		"2 RFC 9110 8.6 no length":                      ok + "Content-Length:\r\n\r\n",
		"2 RFC 9110 8.6 a length of 19 digits":          ok + "Content-Length: 0000000000000000001\r\n\r\n",
		"3 RFC 9112 6.1 another coding":                 ok + "Transfer-Encoding: gzip\r\n\r\n",
		"3 RFC 9112 6.1 another coding too":             ok + "Transfer-Encoding: gzip, chunked\r\n\r\n",
		"3 RFC 9112 6.1 twice":                          ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"3 RFC 9112 6.1 padded":                         ok + "Transfer-Encoding: chunked \r\n\r\n",
		"3 RFC 9112 6.1 in HTTP/1.0":                    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"6 RFC 9112 2.2 a bare LF":                      "HTTP/1.1 200 OK\n\r\n",
		"6 RFC 9112 2.2 a bare CR":                      "HTTP/1.1 200 O\rK\r\n\r\n",
		"6 RFC 9112 2.2 a bare LF behind a field":       ok + "X: x\n\r\n",
		"6 RFC 9112 2.2 an empty line first":            "\r\n" + ok + "\r\n",
		"6 RFC 9112 2.3 HTTP/1.2":                       "HTTP/1.2 200 OK\r\n\r\n",
		"6 RFC 9112 2.3 HTTP/2":                         "HTTP/2 200 OK\r\n\r\n",
		"6 RFC 9112 2.3 no version":                     "200 OK\r\n\r\n",
		"6 RFC 9112 4 no space behind the status":       "HTTP/1.1 200\r\n\r\n",
		"6 RFC 9112 4 two spaces before the status":     "HTTP/1.1  200 OK\r\n\r\n",
		"6 RFC 9112 4 a tab before the status":          "HTTP/1.1\t200 OK\r\n\r\n",
		"6 RFC 9112 4 NUL in the reason":                "HTTP/1.1 200 \x00\r\n\r\n",
		"6 RFC 9112 4 ESC in the reason":                "HTTP/1.1 200 \x1b[2J\r\n\r\n",
		"6 RFC 9112 5.1 a space before the colon":       ok + "Content-Length : 1\r\n\r\na",
		"6 RFC 9112 5.2 a folded field":                 ok + "X: a\r\n b\r\n\r\n",
		"6 RFC 9110 5.5 NUL in a value":                 ok + "X: \x00\r\n\r\n",
		"7 RFC 9110 15 a status of 099":                 "HTTP/1.1 099 x\r\n\r\n",
		"7 RFC 9110 15 a status of 600":                 "HTTP/1.1 600 x\r\n\r\n",
		"7 RFC 9110 15 a status of two digits":          "HTTP/1.1 20 OK\r\n\r\n",
		"7 RFC 9110 15 a status of four digits":         "HTTP/1.1 2000 OK\r\n\r\n",
		"7 RFC 9110 15 a signed status":                 "HTTP/1.1 +20 OK\r\n\r\n",
		"7 RFC 9110 7.8 a switch that nobody asked for": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
		"7 RFC 9110 8.6 204 and a length":               "HTTP/1.1 204 x\r\nContent-Length: 1\r\n\r\na",
		"7 RFC 9112 6.1 204 and chunks":                 "HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"7 RFC 9110 8.6 103 and a length":               "HTTP/1.1 103 x\r\nContent-Length: 1\r\n\r\na",
		"20 RFC 6585 5 101 fields":                      ok + many(101) + "\r\n",
		"20 RFC 6585 5 a head of 64 KB":                 ok + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"20 RFC 6585 5 a reason of 64 KB":               "HTTP/1.1 200 " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
	} {
		rows = append(rows, replyRow{name: name, method: "GET", in: in})
	}
	return append(rows, replyRow{name: "14 RFC 9110 9.3.6 a tunnel", method: "CONNECT", in: ok + "\r\n"})
}

func TestReplies(t *testing.T) {
	for _, c := range replyRows() {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{len(c.in), 1, 7} {
				got := readReplies(c.in, c.method, size, &Limits{})
				if c.want == "" {
					if len(got.messages) != 0 || got.status != 502 {
						t.Errorf("in pieces of %d: it was read: %+v", size, got)
					}
					continue
				}
				if len(got.messages) != 1 || got.messages[0].head != c.want || got.messages[0].body != c.body || !got.messages[0].whole {
					t.Errorf("in pieces of %d: %+v\nwant %s %q", size, got, c.want, c.body)
				}
			}
		})
	}
	// 7: an interim reply is one, and the reply comes behind it.
	got := readReplies("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nA: b\r\n\r\nHTTP/1.1 201 x\r\nContent-Length: 1\r\n\r\na", "PUT", 5, &Limits{})
	if len(got.messages) != 3 || got.messages[2].body != "a" || got.status != 0 {
		t.Errorf("%+v", got)
	}
}
