package intercept

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// tableName is Ward's table. Nothing else is ever written or removed.
const tableName = "ward"

// Options configures a Table. All fields must be set, but for Cgroups on a host without cgroup2.
type Options struct {
	Cgroups string // where cgroup2 is mounted; "" where it is not, and then units cannot be intercepted
	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Table is Ward's packet rules on this host. Its methods may be called from several goroutines.
type Table struct {
	o       Options
	written prometheus.Counter
	lost    prometheus.Counter

	mu      sync.Mutex
	rules   *Rules            // nil before the first Apply
	cgroups map[string]cgroup // of the units that ran at the last write
	handles map[string][]uint64
	err     error         // why the rules may not be what they should be
	changed chan struct{} // the units to watch may be others
}

// New makes a Table. It neither reads nor writes any rule.
func New(o Options) (*Table, error) {
	t := &Table{o: o, changed: make(chan struct{}, 1),
		written: prometheus.NewCounter(prometheus.CounterOpts{Name: "ward_mesh_rules_written_total", Help: "How often the packet rules were written."}),
		lost:    prometheus.NewCounter(prometheus.CounterOpts{Name: "ward_mesh_rules_lost_total", Help: "How often somebody else had removed or changed Ward's packet rules."})}
	for _, c := range []prometheus.Collector{t.written, t.lost} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("intercept: %w", err)
		}
	}
	return t, nil
}

// Apply makes r the rules of this host, in one transaction: no packet sees a mixture. Rules that stand already are not
// written again, and a failure leaves those that stood. Connections that are led to egress stay so.
func (t *Table) Apply(r Rules) error {
	if err := r.validate(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	cgroups, err := locate(t.o.Cgroups, r.units())
	if err != nil {
		return fmt.Errorf("intercept: %w", err)
	}
	return t.write(r, cgroups)
}

// write replaces the table unless it stands as it should. t.mu is held.
func (t *Table) write(r Rules, cgroups map[string]cgroup) error {
	if t.rules != nil && t.err == nil && reflect.DeepEqual(*t.rules, r) && maps.Equal(t.cgroups, cgroups) {
		if handles, err := readHandles(); err == nil && maps.EqualFunc(handles, t.handles, slices.Equal[[]uint64]) {
			return nil
		}
	}
	if err := replace(render(r, cgroups)); err != nil {
		t.err = fmt.Errorf("intercept: write the packet rules: %w%s", err, hint(err))
		return t.err
	}
	t.rules, t.cgroups, t.err = &r, cgroups, nil
	t.written.Inc()
	select {
	case t.changed <- struct{}{}:
	default:
	}
	if t.handles, t.err = readHandles(); t.err != nil {
		t.err = fmt.Errorf("intercept: read the packet rules back: %w", t.err)
	}
	return t.err
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "; ward mesh needs CAP_NET_ADMIN"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		return "; the kernel lacks a part of nftables: it needs the nat, reject, ct and socket expressions for the inet family (Linux 5.13 or later)"
	}
	return ""
}

// replace writes chains as the whole of the table.
func replace(chains []chain) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	c.AddTable(table) // so that there is something to delete
	c.DelTable(table)
	c.AddTable(table)
	accept := nftables.ChainPolicyAccept
	for _, ch := range chains {
		made := &nftables.Chain{Name: ch.name, Table: table}
		if ch.kind != "" {
			made.Type, made.Hooknum, made.Priority, made.Policy = ch.kind, ch.hook, nftables.ChainPriorityRef(nftables.ChainPriority(ch.prio)), &accept
		}
		c.AddChain(made)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: made, Exprs: r.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
		}
	}
	return c.Flush()
}

// standing reads the table that stands, or nil.
func standing(c *nftables.Conn) (*nftables.Table, []*nftables.Chain, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return nil, nil, nil
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nil, err
	}
	return tables[i], slices.DeleteFunc(all, func(ch *nftables.Chain) bool { return ch.Table.Name != tableName }), nil
}

// readHandles reads the kernel's number of each rule that stands, by chain. The kernel never gives one twice, so that
// equal numbers are the same rules; the flags of the table come first.
func readHandles() (map[string][]uint64, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	table, chains, err := standing(c)
	if err != nil || table == nil {
		return nil, err
	}
	handles := map[string][]uint64{"": {uint64(table.Flags)}}
	for _, ch := range chains {
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return nil, err
		}
		handles[ch.Name] = []uint64{}
		for _, r := range rules {
			handles[ch.Name] = append(handles[ch.Name], r.Handle)
		}
	}
	return handles, nil
}

// Count is how many packets one rule has met.
type Count struct {
	Chain, Rule string
	Packets     uint64
}

// Status is what stands.
type Status struct {
	Counts []Count
	// Units says for each unit whose traffic is intercepted where it runs, or "" while it does not.
	Units map[string]string
	Err   error // why the rules may not be what they should be; nil when all is well
}

// Status reads the rules that stand, with their counters.
func (t *Table) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Status{Units: map[string]string{}, Err: t.err}
	if t.rules == nil {
		return s
	}
	for unit := range t.rules.units() {
		s.Units[unit] = t.cgroups[unit].path
	}
	counts, err := count()
	if s.Counts = counts; s.Err == nil {
		s.Err = err
	}
	return s
}

func count() ([]Count, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	table, chains, err := standing(c)
	switch {
	case err != nil:
		return nil, fmt.Errorf("intercept: %w", err)
	case table == nil:
		return nil, errors.New("intercept: the packet rules have been removed")
	}
	var counts []Count
	for _, ch := range chains {
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return nil, fmt.Errorf("intercept: %w", err)
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					counts = append(counts, Count{Chain: ch.Name, Rule: comment, Packets: n.Packets})
				}
			}
		}
	}
	return counts, nil
}

// Clear removes Ward's table, and reports whether there was one. It is what a removal of Ward calls, and nothing else:
// the mesh's addresses are anybody's afterwards.
func Clear() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("intercept: %w", err)
	}
	table, _, err := standing(c)
	if err != nil {
		return false, fmt.Errorf("intercept: read the packet rules: %w%s", err, hint(err))
	}
	if table == nil {
		return false, nil
	}
	c.DelTable(table)
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("intercept: remove the packet rules: %w%s", err, hint(err))
	}
	return true, nil
}
