// Package http1 reads and writes HTTP/1.1 heads and body framing, byte by byte and strictly. It knows no connection,
// no deadline and no policy: whoever owns a connection hands it bytes and learns what they are.
//
// # Why not a lenient reader
//
// A proxy is a second reader of every message. Wherever RFC 9112 lets a recipient be lenient (a lone LF, a folded line,
// a list of equal lengths, a padded transfer coding, an empty line before the request), two readers can see two different
// messages in the same bytes, and the difference is request smuggling. So there is one spelling here, and all else is
// refused with a status and never repaired: lines end in CRLF, one space stands between the words of a first line, names are
// tokens with the colon right behind, a message has one framing, and trailers are read and dropped. What is sent on is
// built anew with the appenders, which refuse what the readers would refuse: no byte of a peer's head is ever copied
// unread.
//
// # Use
//
//	n, err := head.Parse(buf[:filled], &limits) // 0, nil: read more into buf, call again
//	body.Start(head.Length, &limits)
//	data, n, err := body.Next(buf[n:filled])    // until body.Done()
//
// A head that comes in pieces is looked at once: Parse goes on where it stopped, and refuses a bad byte when it sees
// it, not when the head has come whole. Parse and Next make no difference between bytes that come at once and bytes
// that come one by one: what is read, what is refused, and why, is the same. Nothing is allocated once a Head has seen
// a message with as many fields.
//
// A Head is an index: it points into the caller's buffer, and is good until the next Parse or Reset or until the caller
// changes the buffer. Copy what is to live longer.
//
// # What is not judged here
//
// The grammar of a Host and which one is served, what a path means, which fields may pass, what Connection names, and
// upgrades: those are decisions, and belong above.
//
// RFC 9110 is the semantics, RFC 9112 the syntax: https://www.rfc-editor.org/rfc/rfc9112. Every check names its section.
package http1
