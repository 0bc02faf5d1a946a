package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/wardmesh/ward/proxy"
)

// A log has one writer, and while one process takes another's place there are two that have records: calls of the older
// one still owe their outcomes. So it closes its log, the younger one opens it, and from then on the older one's records
// travel over a connection between the two: Sender at its end, Receive at the other. A record counts as durable when the
// other end has said so, after its own fdatasync, and not before.
//
// Whatever breaks the connection breaks the Sender for good: what was not answered has failed, and so does all that is
// appended afterwards. That is the same as the end of the process in the middle of its calls: an intent without an outcome
// is presumed disclosed.
//
// On the wire a record is its length (4 bytes, big-endian), a number (8 bytes) and its line; an answer is the length of
// what follows, the record's number, a byte for the fate and a text. The two are one user's processes of one role, over a
// Unix socket that nobody else can reach; a line is checked all the same, because it becomes part of the log.

// Sender is a Recorder whose records another process appends to the log. Its methods may be called from any goroutine.
type Sender struct {
	conn  net.Conn
	hurry chan struct{} // closed when the other end asks for an early end, or is gone
	once  sync.Once

	writing sync.Mutex // one record is on its way at a time

	mu      sync.Mutex
	next    uint64
	pending map[uint64]*sent
	err     error         // why nothing can be sent any more
	empty   chan struct{} // closed when nothing is pending; nil unless somebody waits for it
}

var _ proxy.Recorder = (*Sender)(nil)

// sent is the Receipt of a record that is on its way.
type sent struct {
	done chan struct{}
	err  error
}

// Wait implements proxy.Receipt.
func (s *sent) Wait(ctx context.Context) error {
	select {
	case <-s.done:
		return s.err
	default:
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("audit: waiting for the disk of another process: %w", ctx.Err())
	}
}

// The fates of a record, as they travel.
const (
	fateDurable byte = iota
	fateFailed
	fateFull
	fateBusy
	fateRecord
	fateHurry // no record's: the sender is to come to its end
)

// failures gives the errors by which callers tell what is the matter, by the fate that stands for each.
func failures() map[byte]error {
	return map[byte]error{fateFailed: ErrFailed, fateFull: ErrFull, fateBusy: ErrBusy, fateRecord: ErrRecord}
}

// stalled is how long the other end may take to read a record before it counts as gone.
const stalled = 10 * time.Second

// mostText bounds what an answer says.
const mostText = 4 << 10

// NewSender sends records over conn, which it owns from now on.
func NewSender(conn net.Conn) *Sender {
	s := &Sender{conn: conn, hurry: make(chan struct{}), pending: map[uint64]*sent{}}
	go s.listen()
	return s
}

// Hurry is closed when the other end wants to end, or has.
func (s *Sender) Hurry() <-chan struct{} { return s.hurry }

// Append implements proxy.Recorder.
func (s *Sender) Append(r *proxy.Record) (proxy.Receipt, error) {
	frame, err := appendRecord(make([]byte, 12, 1024), r, time.Now)
	if err != nil {
		return nil, err
	}
	return s.send(frame)
}

// AppendLine implements Lines: a process that has been replaced may itself have replaced one that has not ended yet.
func (s *Sender) AppendLine(line []byte) (proxy.Receipt, error) {
	if _, err := decodeLine(line); err != nil {
		return nil, err
	}
	return s.send(append(make([]byte, 12, 12+len(line)), line...))
}

// send sends a line, before which there is room for what stands before it.
func (s *Sender) send(frame []byte) (proxy.Receipt, error) {
	n := len(frame) - 12
	if n > MaxRecord {
		return nil, fmt.Errorf("%w: it has %d bytes, the most is %d", ErrRecord, n, MaxRecord)
	}
	binary.BigEndian.PutUint32(frame, uint32(n)) //nolint:gosec // at most MaxRecord
	s.writing.Lock()
	defer s.writing.Unlock()
	receipt := &sent{done: make(chan struct{})}
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return nil, s.err
	}
	number := s.next
	s.next++
	s.pending[number] = receipt
	s.mu.Unlock()
	binary.BigEndian.PutUint64(frame[4:], number)
	_ = s.conn.SetWriteDeadline(time.Now().Add(stalled))
	if _, err := s.conn.Write(frame); err != nil {
		s.fail(err)
		return nil, s.failure()
	}
	return receipt, nil
}

func (s *Sender) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail ends the sender: nothing that was not answered will be.
func (s *Sender) fail(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("%w: the process that keeps it now does not answer: %w", ErrFailed, cause)
	}
	for n, p := range s.pending {
		p.err = s.err
		close(p.done)
		delete(s.pending, n)
	}
	s.settle()
	_ = s.conn.Close()
	s.once.Do(func() { close(s.hurry) })
}

// settle tells Close that there is nothing on its way. s.mu is held.
func (s *Sender) settle() {
	if s.empty != nil && len(s.pending) == 0 {
		close(s.empty)
		s.empty = nil
	}
}

// listen takes the answers.
func (s *Sender) listen() {
	head := make([]byte, 13)
	for {
		if _, err := io.ReadFull(s.conn, head); err != nil {
			s.fail(err)
			return
		}
		n, number, fate := binary.BigEndian.Uint32(head), binary.BigEndian.Uint64(head[4:]), head[12]
		if n > mostText {
			s.fail(fmt.Errorf("an answer of %d bytes", n))
			return
		}
		text := make([]byte, n)
		if _, err := io.ReadFull(s.conn, text); err != nil {
			s.fail(err)
			return
		}
		if fate == fateHurry {
			s.once.Do(func() { close(s.hurry) })
			continue
		}
		if err := s.answered(number, fate, text); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Sender) answered(number uint64, fate byte, text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending[number]
	known, is := failures()[fate]
	if p == nil || fate != fateDurable && !is {
		return errors.New("an answer that belongs to nothing")
	}
	delete(s.pending, number)
	if fate != fateDurable {
		p.err = fmt.Errorf("%w: %s", known, text)
	}
	close(p.done)
	s.settle()
	return nil
}

// Close waits until everything that was appended has an answer, or ctx ends, and closes the connection. The error says
// that records may be missing. Appending after Close is an ErrFailed.
func (s *Sender) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return s.err
	}
	empty := make(chan struct{})
	s.empty = empty
	s.settle()
	s.mu.Unlock()
	var err error
	select {
	case <-empty:
		if err = s.failure(); err == nil {
			s.fail(net.ErrClosed)
			return nil
		}
	case <-ctx.Done():
		err = fmt.Errorf("audit: records are on their way to the process that keeps the log now: %w", context.Cause(ctx))
	}
	s.fail(net.ErrClosed)
	return err
}

// Lines appends records as another process has encoded them. Trail and Sender implement it.
type Lines interface {
	AppendLine(line []byte) (proxy.Receipt, error)
}

// Receive appends what a Sender sends over conn to the log, and answers, until the sender closes the connection, which is
// no error, or it breaks. It closes conn. Once hurry is closed the sender is told to come to its end.
func Receive(conn net.Conn, to Lines, hurry <-chan struct{}) error {
	defer conn.Close()
	r := &receiver{conn: conn, order: make(chan arrived, 1024)}
	over, told := make(chan struct{}), make(chan struct{})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		r.answer()
	}()
	go func() {
		defer close(told)
		select {
		case <-hurry:
			r.write(0, fateHurry, "")
		case <-over:
		}
	}()
	err := r.read(to)
	close(over)
	close(r.order)
	<-answered
	<-told
	return err
}

// receiver is the far end of a Sender.
type receiver struct {
	conn  net.Conn
	order chan arrived // records in the order in which they came, on their way to the disk

	mu sync.Mutex // for writing
}

type arrived struct {
	number  uint64
	receipt proxy.Receipt
	err     error
}

// read takes records until there are no more.
func (r *receiver) read(to Lines) error {
	head := make([]byte, 12)
	for {
		if _, err := io.ReadFull(r.conn, head); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("audit: records of another process: %w", err)
		}
		n := binary.BigEndian.Uint32(head)
		if n > MaxRecord {
			return fmt.Errorf("audit: another process sends a record of %d bytes, the most is %d", n, MaxRecord)
		}
		line := make([]byte, n)
		if _, err := io.ReadFull(r.conn, line); err != nil {
			return fmt.Errorf("audit: records of another process: %w", err)
		}
		a := arrived{number: binary.BigEndian.Uint64(head[4:])}
		a.receipt, a.err = to.AppendLine(line)
		r.order <- a
	}
}

// answer says of each record what became of it.
func (r *receiver) answer() {
	for a := range r.order {
		err := a.err
		if err == nil {
			err = a.receipt.Wait(context.Background())
		}
		fate, text := fateOf(err)
		r.write(a.number, fate, text)
	}
}

func fateOf(err error) (byte, string) {
	if err == nil {
		return fateDurable, ""
	}
	for fate, known := range failures() {
		if errors.Is(err, known) {
			return fate, err.Error()
		}
	}
	return fateFailed, err.Error()
}

// write sends an answer. A sender that is gone learns nothing, and reading finds out.
func (r *receiver) write(number uint64, fate byte, text string) {
	text = text[:min(len(text), mostText)]
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 13+len(text)), uint32(len(text))) //nolint:gosec // at most mostText
	b = append(binary.BigEndian.AppendUint64(b, number), fate)
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.conn.SetWriteDeadline(time.Now().Add(stalled))
	if _, err := r.conn.Write(append(b, text...)); err != nil {
		_ = r.conn.Close()
	}
}

// decodeLine reads a record that another process has encoded. It must be what appendRecord makes, as far as the form of
// the log depends on it: one object of one line, of this schema. Fields that only the other's version knows may be in it.
func decodeLine(line []byte) (*proxy.Record, error) {
	if len(line) > MaxRecord {
		return nil, fmt.Errorf("%w: it has %d bytes, the most is %d", ErrRecord, len(line), MaxRecord)
	}
	if !bytes.HasPrefix(line, []byte(`{"schema":"`+proxy.RecordSchema+`",`)) || !bytes.HasSuffix(line, []byte("}")) || bytes.ContainsAny(line, "\n\r") {
		return nil, fmt.Errorf("%w: another process has encoded it otherwise", ErrRecord)
	}
	var r proxy.Record
	if err := jsonv2.Unmarshal(line, &r); err != nil { // RFC 8259, no name twice, UTF-8 only
		return nil, fmt.Errorf("%w: another process has encoded it otherwise: %w", ErrRecord, err)
	}
	return &r, nil
}
