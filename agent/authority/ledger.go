package authority

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

const (
	// keepExpired is how long a serial is kept after its certificate has ended, for questions about it.
	keepExpired = time.Hour
	// pruneEvery is how often ended serials are looked for, at most.
	pruneEvery = 5 * time.Minute
)

// ledger writes serials into the journal, many with one fsync: while one batch is on its way to the disk, the
// requests that arrive wait, and form the next batch. Nobody waits for a batch to fill.
type ledger struct {
	store  Store
	clock  func() time.Time
	log    *zap.Logger
	entry  chan *entry
	stop   chan struct{} // closed: no more entries
	done   chan struct{} // closed: the goroutine has ended
	pruned time.Time
}

// entry is one serial on its way into the journal.
type entry struct {
	record Record
	result chan error // has room for one
}

// serialRecord is the value of a serial in the journal.
type serialRecord struct {
	ID        string    `json:"id"`
	NotBefore time.Time `json:"not_before"`
	CA        uint32    `json:"ca,omitempty"` // the generation that signed; absent from before there were several, and stands for 1
}

func newLedger(store Store, clock func() time.Time, log *zap.Logger) *ledger {
	l := &ledger{store: store, clock: clock, log: log, entry: make(chan *entry), stop: make(chan struct{}), done: make(chan struct{})}
	go l.run()
	return l
}

// add returns once the certificate's serial is durable. After an error the serial may or may not be in the journal.
func (l *ledger) add(ctx context.Context, cert *x509.Certificate, ca uint32) error {
	e := &entry{
		record: Record{BucketSerials, serialKey(cert.NotAfter, cert.SerialNumber.Bytes()), encode(serialRecord{cert.URIs[0].String(), cert.NotBefore.UTC(), ca})},
		result: make(chan error, 1),
	}
	select {
	case <-l.stop:
		return ErrClosed
	default:
	}
	select {
	case l.entry <- e:
	case <-l.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-e.result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends the ledger after the entries that it has taken.
func (l *ledger) close() {
	close(l.stop)
	<-l.done
}

func (l *ledger) run() {
	defer close(l.done)
	for {
		l.prune()
		select {
		case <-l.stop:
			return
		case first := <-l.entry:
			l.commit(l.gather(first))
		}
	}
}

// gather takes the entries that wait already.
func (l *ledger) gather(first *entry) []*entry {
	batch := []*entry{first}
	for len(batch) < MaxWrites {
		select {
		case e := <-l.entry:
			batch = append(batch, e)
		default:
			return batch
		}
	}
	return batch
}

func (l *ledger) commit(batch []*entry) {
	tx := Tx{Put: make([]Record, len(batch))}
	for i, e := range batch {
		tx.Put[i] = e.record
	}
	err := l.store.Commit(context.Background(), tx)
	if err != nil {
		err = fmt.Errorf("authority: journal: %w", err)
		l.log.Error("certificates were not issued: the journal cannot be written", zap.Error(err), zap.Int("certificates", len(batch)))
	}
	for _, e := range batch {
		e.result <- err
	}
}

// prune removes the serials of certificates that ended a while ago. Failing is no reason to stop issuing.
func (l *ledger) prune() {
	now := l.clock()
	if now.Sub(l.pruned) < pruneEvery {
		return
	}
	l.pruned = now
	for {
		var tx Tx
		full := errors.New("full")
		err := l.store.Range(context.Background(), BucketSerials, []byte{0}, serialKey(now.Add(-keepExpired), nil), func(k, _ []byte) error {
			if len(tx.Delete) == MaxWrites {
				return full
			}
			tx.Delete = append(tx.Delete, Record{Bucket: BucketSerials, Key: append([]byte(nil), k...)})
			return nil
		})
		more := errors.Is(err, full)
		if more {
			err = nil
		}
		if err == nil && len(tx.Delete) > 0 {
			err = l.store.Commit(context.Background(), tx)
		}
		if err != nil {
			l.log.Warn("ended serials could not be removed from the journal", zap.Error(err))
			return
		}
		if !more {
			return
		}
	}
}

// serialKey is the key of a serial: the end of its certificate first, in seconds, so that what has ended lies
// together.
func serialKey(notAfter time.Time, serial []byte) []byte {
	k := binary.BigEndian.AppendUint64([]byte{1}, uint64(max(notAfter.Unix(), 0)))
	return append(k, serial...)
}

// serialEnd is the end in the key of a serial.
func serialEnd(k []byte) (time.Time, bool) {
	if len(k) < 9 || k[0] != 1 {
		return time.Time{}, false
	}
	return time.Unix(int64(min(binary.BigEndian.Uint64(k[1:]), 1<<62)), 0), true //nolint:gosec // bounded
}

// Issued says to whom a certificate was issued, from the journal. ErrNotFound means that this authority has not
// issued it, or that it ended more than an hour ago.
func (a *Authority) Issued(ctx context.Context, cert *x509.Certificate) (id string, err error) {
	v, err := a.store.Get(ctx, BucketSerials, serialKey(cert.NotAfter, cert.SerialNumber.Bytes()))
	if err != nil {
		return "", err
	}
	var r serialRecord
	if err := json.Unmarshal(v, &r); err != nil {
		return "", &CorruptError{Path: filepath.Join(a.dir, journalFile), Problem: "the record of a serial cannot be read", Advice: restore, Err: err}
	}
	return r.ID, nil
}
