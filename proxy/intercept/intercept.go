// Package intercept keeps the host's packet rules: what is sent to the mesh's virtual addresses, and by choice what
// chosen processes send to FHIR ports, ends at egress or nowhere.
//
// # What
//
// One nftables table, `inet ward`, that is written whole in one transaction by [Table.Apply]:
//
//   - TCP to the mesh range is led to egress, whatever its port; anything else to the range is rejected.
//   - TCP of intercepted users and units to their FHIR ports is led to egress. Over IPv6, which egress does not speak,
//     it is rejected, so that applications fall back on IPv4.
//   - The TCP upstreams of this host can be dialled by Ward alone.
//   - Nobody but Ward answers on egress's address.
//
// The address that an application dialled stays known: egress reads it with SO_ORIGINAL_DST.
//
// # Why it fails closed
//
// Any local user may bind 127.128.0.5:8080, the address of a service, and any local user may bind egress's own port
// while egress restarts, if it is not a low one. Neither must ever receive a byte:
//
//   - The kernel keeps the table when the process that wrote it stops or is killed, so there is nothing to swap in
//     then: a restart or an upgrade breaks no call, and an egress that is down is a refused connection.
//   - A connection handshake from egress's address is let through only if the listening socket belongs to Ward (or to
//     root, whose service manager holds sockets for Ward), whoever else has bound the port.
//   - Where the address translation did not happen, whatever the reason (a connection older than the table, a packet
//     that another table exempts from tracking), the same packets are rejected by the filter chains behind it.
//   - [Table.Run] watches the table. Some firewalls flush everything when they reload; the table is then written anew.
//
// Only [Clear] removes it.
//
// # Limits
//
// A unit is told by its cgroup, which exists only while it runs. Its rules are written when its cgroup appears, some
// milliseconds after the start of the unit; a connection made before that is reset when they are. A user's rules
// always stand. Root, and whoever holds CAP_NET_RAW or CAP_NET_ADMIN, goes around all of it; so does a process in a
// network namespace of its own, which has its own loopback.
//
// Links: nft(8); https://wiki.nftables.org; cgroups(7).
package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Rules is what the table is to do. It is plain data; [Table.Apply] turns it into packet rules.
type Rules struct {
	// Range is the mesh's virtual addresses, IPv4. Not valid: none.
	Range netip.Prefix
	// Egress is where egress listens, an IPv4 loopback address outside Range. It may be not valid only if neither Range
	// nor Flows need it.
	Egress netip.AddrPort
	// Owners are the uids of Ward's own processes. They are never intercepted, and they may listen on Egress.
	Owners []uint32
	// Flows are whose traffic is led to egress, beside what goes to Range.
	Flows []Flow
	// Guarded are upstreams that only Dialers may dial: loopback addresses.
	Guarded []netip.AddrPort
	// Dialers are the uids that may dial Guarded.
	Dialers []uint32
}

// Flow is one user or one unit, and the TCP ports to which it sends FHIR.
type Flow struct {
	User  uint32 // where Unit is ""
	Unit  string // the name of a unit below system.slice, `portal.service`
	Ports []uint16
}

func (f Flow) name() string {
	if f.Unit != "" {
		return f.Unit
	}
	return fmt.Sprintf("uid %d", f.User)
}

// validate refuses rules that would not hold what they promise.
func (r Rules) validate() error {
	loopback := func(a netip.AddrPort) bool { return a.IsValid() && a.Addr().IsLoopback() && a.Port() != 0 }
	var errs []error
	needsEgress := r.Range.IsValid() || len(r.Flows) > 0
	switch {
	case needsEgress && (!loopback(r.Egress) || !r.Egress.Addr().Is4()):
		errs = append(errs, fmt.Errorf("egress must listen on an IPv4 loopback address to have traffic led to it, not on %s", r.Egress))
	case needsEgress && len(r.Owners) == 0:
		errs = append(errs, errors.New("the users that Ward's own processes run as are not known"))
	}
	if r.Range.IsValid() && (!r.Range.Addr().Is4() || r.Range != r.Range.Masked()) {
		errs = append(errs, fmt.Errorf("the mesh range %s is not an IPv4 prefix in its plain form", r.Range))
	}
	if r.Range.IsValid() && r.Range.Contains(r.Egress.Addr()) {
		errs = append(errs, fmt.Errorf("egress listens on %s, in the range %s that is led to it", r.Egress, r.Range))
	}
	for _, f := range r.Flows {
		if len(f.Ports) == 0 || slices.Contains(f.Ports, 0) {
			errs = append(errs, fmt.Errorf("the traffic of %s is intercepted without saying to which ports", f.name()))
		}
		if f.Unit == "" && slices.Contains(r.Owners, f.User) {
			errs = append(errs, fmt.Errorf("%s is a user of Ward itself: its traffic would go in circles", f.name()))
		}
	}
	for _, g := range r.Guarded {
		if !loopback(g) {
			errs = append(errs, fmt.Errorf("the upstream %s is not on a loopback address, where it could be guarded", g))
		}
	}
	if len(r.Guarded) > 0 && len(r.Dialers) == 0 {
		errs = append(errs, errors.New("the user that may dial the guarded upstreams is not known"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("intercept: %w", err)
	}
	return nil
}
