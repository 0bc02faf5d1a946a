package authority

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Rotation reports on the CAs.
func (a *Authority) Rotation() Rotation {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := Rotation{Sequence: a.sequence, Lead: a.lead()}
	for _, g := range a.cas {
		out := g.describe()
		out.LastSVID = a.ends[out.Number]
		r.Generations = append(r.Generations, out)
	}
	r.Next, r.NextCA, r.NextAt = a.plan()
	return r
}

// Prepare makes the next CA and publishes it in the bundle. Nothing is signed with it yet; Run activates it once it has
// been published for the lead.
func (a *Authority) Prepare(ctx context.Context, o Order) error {
	return a.step(Prepare, o, func() (*caGeneration, error) { return a.prepare(ctx) })
}

// Activate lets the prepared CA sign, once it has been published for long enough that whoever verifies has it. The key
// of the CA that it replaces is destroyed.
func (a *Authority) Activate(ctx context.Context, o Order) error {
	return a.step(Activate, o, func() (*caGeneration, error) { return a.activate(ctx, o) })
}

// Retire takes a CA that does not sign out of the bundle, once nothing that it has signed is valid any more, and
// destroys what is left of it. A prepared CA can be retired too, since nothing depends on it.
func (a *Authority) Retire(ctx context.Context, o Order) error {
	return a.step(Retire, o, func() (*caGeneration, error) { return a.retire(ctx, o) })
}

// step takes one step at a time, and tells the observer of it before the next one can begin.
func (a *Authority) step(s Step, o Order, take func() (*caGeneration, error)) error {
	a.moving.Lock()
	defer a.moving.Unlock()
	if a.closed {
		return ErrClosed
	}
	g, err := take()
	e := Event{Step: s, At: a.clock(), By: o.By, Forced: o.Force, Err: err}
	if g != nil {
		e.Generation, e.SubjectKeyID, e.NotAfter = g.name.Generation, g.cert.SubjectKeyId, g.cert.NotAfter
	}
	a.mu.Lock()
	e.Sequence = a.sequence
	a.mu.Unlock()
	switch {
	case err == nil:
		a.log.Info("the CA took a step", zap.String("step", string(s)), zap.Uint32("generation", e.Generation), zap.Bool("forced", o.Force),
			zap.String("subject_key_id", fmt.Sprintf("%x", e.SubjectKeyID)), zap.Time("not_after", e.NotAfter), zap.Uint64("bundle_sequence", e.Sequence))
	case !errors.Is(err, ErrTransition):
		a.log.Error("the CA could not take a step", zap.String("step", string(s)), zap.Error(err))
	}
	a.observe(e)
	a.wakeRun()
	return err
}

func (a *Authority) prepare(ctx context.Context) (*caGeneration, error) {
	a.mu.Lock()
	now, cas, sequence, newest := a.clock(), a.cas, a.sequence, a.newest
	a.mu.Unlock()
	for _, g := range cas {
		if g.record.State == Prepared {
			return g, &TransitionError{Step: Prepare, Problem: fmt.Sprintf("CA %d is prepared already", g.name.Generation), Advice: "activate it, or retire it unused"}
		}
	}
	if len(cas) >= mostGenerations {
		return nil, &TransitionError{Step: Prepare, Problem: fmt.Sprintf("%d CAs are in the bundle, which is the most", len(cas)), Advice: "retire old ones first"}
	}
	name := KeyName{X509CA, newest + 1}
	// An earlier attempt may have been killed. Its key was never used, nor seen by anybody, and will do; its
	// certificate, which has aged, was never published.
	key, err := a.o.Keys.Signer(name)
	if errors.Is(err, ErrNoKey) {
		key, err = a.o.Keys.Create(name)
	}
	if err != nil {
		return nil, err
	}
	if why := weak(key.Public()); why != "" {
		return nil, fmt.Errorf("authority: the key store made %s", why)
	}
	a.o.reached("prepare: key")
	cert, err := makeCA(a.o, key)
	if err != nil {
		return nil, err
	}
	path := certificatePath(a.dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("authority: %w", err)
	}
	if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})); err != nil {
		return nil, err
	}
	a.o.reached("prepare: certificate")
	g := newGeneration(name, Prepared, cert, key, now)
	g.place = a.o.Keys.Place(name)
	// SPIFFE Trust Domain and Bundle §4.1.1: each change of the bundle raises the sequence number by one.
	tx := Tx{If: []Condition{{Bucket: BucketKeys, Key: name.record()}, sequenceIs(sequence)},
		Put: []Record{{BucketKeys, name.record(), g.stored}, sequenceNow(sequence + 1), newestNow(name.Generation)}}
	if err := a.commit(ctx, Prepare, tx); err != nil {
		return nil, err
	}
	a.o.reached("prepare: record")
	a.install(append(slices.Clone(cas), g), sequence+1, name.Generation)
	return g, nil
}

func (a *Authority) activate(ctx context.Context, o Order) (*caGeneration, error) {
	a.mu.Lock()
	now, cas, sequence, newest, active := a.clock(), a.cas, a.sequence, a.newest, a.active
	a.mu.Unlock()
	i := slices.IndexFunc(cas, func(g *caGeneration) bool { return g.record.State == Prepared })
	if i < 0 {
		return nil, &TransitionError{Step: Activate, Problem: "no CA is prepared", Advice: "prepare one first"}
	}
	next := cas[i]
	a.mu.Lock()
	ready := a.ready(next, o.Lead)
	a.mu.Unlock()
	switch {
	case now.Before(next.cert.NotBefore) || !now.Before(next.cert.NotAfter):
		return next, &TransitionError{Step: Activate, Problem: fmt.Sprintf("CA %d is not valid now", next.name.Generation), Advice: "retire it, and prepare another"}
	case now.Before(ready) && !o.Force:
		// SPIFFE Federation §4: a key is published ahead of its use.
		return next, &TransitionError{Step: Activate, Problem: fmt.Sprintf("CA %d has been published since %s only, and peers may not have it", next.name.Generation,
			next.published().UTC().Format(time.RFC3339)), Possible: ready, Advice: "force it only when the key of the CA in use is known to others"}
	}
	on, off := next.in(Active), active.in(Old)
	on.record.Activated, off.record.Replaced = now.UTC(), now.UTC()
	on.stored, off.stored, off.key = encode(on.record), encode(off.record), nil
	tx := Tx{If: []Condition{{BucketKeys, next.name.record(), next.stored}, {BucketKeys, active.name.record(), active.stored}, sequenceIs(sequence)},
		Put: []Record{{BucketKeys, on.name.record(), on.stored}, {BucketKeys, off.name.record(), off.stored}}}
	if err := a.commit(ctx, Activate, tx); err != nil {
		return next, err
	}
	a.o.reached("activate: record")
	after := slices.Clone(cas)
	after[i], after[slices.Index(cas, active)] = on, off
	a.install(after, sequence, newest)
	a.clear()
	a.o.reached("activate: key destroyed")
	return on, nil
}

func (a *Authority) retire(ctx context.Context, o Order) (*caGeneration, error) {
	a.mu.Lock()
	now, cas, sequence, newest := a.clock(), a.cas, a.sequence, a.newest
	a.mu.Unlock()
	i := slices.IndexFunc(cas, func(g *caGeneration) bool {
		return g.name.Generation == o.Generation || o.Generation == 0 && g.record.State == Old
	})
	switch {
	case i < 0 && o.Generation == 0:
		return nil, &TransitionError{Step: Retire, Problem: "no CA has been replaced", Advice: "activate another one first"}
	case i < 0:
		return nil, &TransitionError{Step: Retire, Problem: fmt.Sprintf("there is no CA %d in the bundle", o.Generation)}
	case cas[i].record.State == Active:
		return cas[i], &TransitionError{Step: Retire, Problem: fmt.Sprintf("CA %d signs", cas[i].name.Generation), Advice: "prepare and activate another one first"}
	}
	g := cas[i]
	a.mu.Lock()
	end := a.ends[g.name.Generation]
	a.mu.Unlock()
	if now.Before(end) && !o.Force {
		return g, &TransitionError{Step: Retire, Problem: fmt.Sprintf("an SVID of CA %d is valid", g.name.Generation), Possible: end,
			Advice: "force it only when the key of that CA is known to others: what it signed is then refused everywhere"}
	}
	tx := Tx{If: []Condition{{BucketKeys, g.name.record(), g.stored}, sequenceIs(sequence)},
		Put: []Record{sequenceNow(sequence + 1), newestNow(newest)}, Delete: []Record{{Bucket: BucketKeys, Key: g.name.record()}}}
	if err := a.commit(ctx, Retire, tx); err != nil {
		return g, err
	}
	a.o.reached("retire: record")
	a.install(slices.Delete(slices.Clone(cas), i, i+1), sequence+1, newest)
	a.clear()
	a.o.reached("retire: files")
	return g, nil
}

// commit writes a step into the journal. After an error nobody knows whether it is there, so it is read again.
func (a *Authority) commit(ctx context.Context, s Step, tx Tx) error {
	err := a.store.Commit(ctx, tx)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("authority: %s: journal: %w", s, err)
	ctx = context.WithoutCancel(ctx)
	cas, loadErr := loadCAs(ctx, a.o, a.store)
	sequence, sequenceErr := bundleSequence(ctx, a.o, a.store)
	newest, newestErr := newestGeneration(ctx, a.o, a.store, cas)
	if loadErr == nil && sequenceErr == nil && newestErr == nil && len(cas) > 0 {
		a.install(cas, sequence, newest)
	}
	return err
}

// install makes cas the CAs. Whoever waits for a change of the bundle learns of it when there is one.
func (a *Authority) install(cas []*caGeneration, sequence uint64, newest uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	same := sequence == a.sequence
	a.cas, a.sequence, a.newest = cas, sequence, newest
	a.active = cas[slices.IndexFunc(cas, func(g *caGeneration) bool { return g.record.State == Active })]
	for n := range a.ends {
		if !slices.ContainsFunc(cas, func(g *caGeneration) bool { return g.name.Generation == n }) {
			delete(a.ends, n)
		}
	}
	if !same {
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

// clear destroys keys that sign nothing any more, and what is left of CAs that were retired. A crash may have left
// some; a failure leaves them for the next time.
func (a *Authority) clear() {
	a.mu.Lock()
	cas, newest := a.cas, a.newest
	a.mu.Unlock()
	left, err := generationFiles(a.dir)
	for _, g := range cas {
		if g.record.State == Old {
			err = errors.Join(err, a.o.Keys.Remove(g.name))
		}
	}
	for _, n := range left {
		if n > newest || slices.ContainsFunc(cas, func(g *caGeneration) bool { return g.name.Generation == n }) {
			continue // one that was being prepared, or one in use
		}
		name := KeyName{X509CA, n}
		err = errors.Join(err, a.o.Keys.Remove(name))
		if e := os.Remove(certificatePath(a.dir, name)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		a.log.Warn("what is left of CAs that sign no more could not be removed", zap.Error(err))
	}
}
