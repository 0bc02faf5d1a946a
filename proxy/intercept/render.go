package intercept

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// chain is one chain of the table, before it is written.
type chain struct {
	name  string
	kind  nftables.ChainType // "" for one that others jump to
	hook  *nftables.ChainHook
	prio  int32
	rules []rule
}

// rule is one rule: its comment is what operators see in `nft list table inet ward` and in Ward's status.
type rule struct {
	comment string
	exprs   []expr.Any
}

// The chains' names.
const (
	redirectChain = "redirect" // address translation of new connections
	fenceChain    = "fence"    // what the translation left over, on its way out
	arrivalChain  = "arrival"  // the mesh range, on its way in
	answerChain   = "answer"   // who may answer on egress's address
	guardChain    = "guard"    // who may dial an upstream
	strayChain    = "stray"    // intercepted traffic that was not led to egress
)

// Before other tables' translations (-100): the first one that translates a connection has it.
const redirectPriority = -110

// render turns rules into chains. cgroups are those of the units in r.Flows that run.
func render(r Rules, cgroups map[string]cgroup) []chain {
	redirect := chain{name: redirectChain, kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, prio: redirectPriority}
	fence := chain{name: fenceChain, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput}
	arrival := chain{name: arrivalChain, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput}
	answer, guard, stray := chain{name: answerChain}, chain{name: guardChain}, chain{name: strayChain}

	if r.Range.IsValid() {
		redirect.add("mesh range to egress", to4(r.Range), tcp(), leadTo(r.Egress))
		for _, c := range []*chain{&fence, &arrival} {
			c.add("mesh range: TCP that was not led to egress", to4(r.Range), tcp(), reset())
			c.add("mesh range: anything but TCP", to4(r.Range), unreachable())
		}
	}
	if r.Egress.IsValid() {
		here := netip.PrefixFrom(r.Egress.Addr(), r.Egress.Addr().BitLen())
		fence.add("answers from egress's address", from4(here), tcp(), sourcePort(r.Egress.Port()), flags(synAck, synAck), jump(answerChain))
		// The service manager may hold egress's socket, and is root.
		for _, uid := range append([]uint32{0}, r.Owners...) {
			answer.add(fmt.Sprintf("uid %d is Ward's", uid), user(uid), back())
		}
		answer.add("a stranger listens on egress's address", drop())
	}
	renderFlows(r, cgroups, &redirect, &stray)
	if len(stray.rules) > 0 {
		fence.add("intercepted traffic", tcp(), jump(strayChain))
	}
	renderGuard(r, &fence, &guard, &arrival)
	return []chain{answer, guard, stray, redirect, fence, arrival}
}

func renderFlows(r Rules, cgroups map[string]cgroup, redirect, stray *chain) {
	if len(r.Flows) == 0 {
		return
	}
	here := netip.PrefixFrom(r.Egress.Addr(), r.Egress.Addr().BitLen())
	// Answers of a server that runs as an intercepted user are not calls. Without tracking there is no direction, and
	// the rules below hold.
	stray.add("answers", reply(), back())
	stray.add("led to egress", to4(here), destPort(r.Egress.Port()), back())
	for _, uid := range r.Owners {
		redirect.add(fmt.Sprintf("uid %d is Ward's", uid), user(uid), back())
		stray.add(fmt.Sprintf("uid %d is Ward's", uid), user(uid), back())
	}
	for _, f := range r.Flows {
		who := user(f.User)
		if f.Unit != "" {
			cg, runs := cgroups[f.Unit]
			if !runs {
				continue
			}
			who = cg.match()
		}
		for _, p := range f.Ports {
			redirect.add(fmt.Sprintf("%s to port %d, to egress", f.name(), p), ip4(), who, tcp(), destPort(p), leadTo(r.Egress))
			stray.add(fmt.Sprintf("%s to port %d, not led to egress", f.name(), p), who, destPort(p), reset())
		}
	}
}

// renderGuard protects a port on all of loopback: a server that listens on every address would otherwise be reached at
// 127.0.0.2. Where the host routes loopback addresses (route_localnet, which some container engines turn on), neighbours
// and containers reach it, too, and have no owner here: what comes in from outside is never Ward's.
func renderGuard(r Rules, fence, guard, arrival *chain) {
	if len(r.Guarded) == 0 {
		return
	}
	seen := map[uint16]bool{}
	for _, g := range r.Guarded {
		if seen[g.Port()] {
			continue
		}
		seen[g.Port()] = true
		fence.add(fmt.Sprintf("upstream on port %d", g.Port()), to4(netip.MustParsePrefix("127.0.0.0/8")), tcp(), destPort(g.Port()), jump(guardChain))
		arrival.add(fmt.Sprintf("upstream on port %d, from outside", g.Port()), outside(), to4(netip.MustParsePrefix("127.0.0.0/8")), tcp(), destPort(g.Port()), drop())
		fence.add(fmt.Sprintf("upstream on port %d", g.Port()), to6(netip.IPv6Loopback()), tcp(), destPort(g.Port()), jump(guardChain))
	}
	for _, uid := range r.Dialers {
		guard.add(fmt.Sprintf("uid %d may dial upstreams", uid), user(uid), back())
	}
	guard.add("a stranger dials an upstream", flags(syn, synAck), reset())
	// What Ward's own closed sockets still send has no owner any more; what has one is a stranger's.
	guard.add("a stranger's connection to an upstream", anyUser(), reset())
}

func (c *chain) add(comment string, parts ...[]expr.Any) {
	r := rule{comment: comment}
	for _, p := range parts[:len(parts)-1] {
		r.exprs = append(r.exprs, p...)
	}
	r.exprs = append(append(r.exprs, &expr.Counter{}), parts[len(parts)-1]...)
	c.rules = append(c.rules, r)
}

// Register 1 is what matches are made in.
const reg = 1

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

func family(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equal([]byte{proto})}
}

func ip4() []expr.Any { return family(unix.NFPROTO_IPV4) }

func tcp() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal([]byte{unix.IPPROTO_TCP})}
}

// inet4 matches the IPv4 address at offset in the header.
func inet4(p netip.Prefix, offset uint32) []expr.Any {
	addr := p.Addr().As4()
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return append(ip4(), &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)}, equal(addr[:]))
}

func from4(p netip.Prefix) []expr.Any { return inet4(p, 12) } // RFC 791 §3.1
func to4(p netip.Prefix) []expr.Any   { return inet4(p, 16) }

func to6(a netip.Addr) []expr.Any {
	addr := a.As16()
	return append(family(unix.NFPROTO_IPV6), &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}, equal(addr[:])) // RFC 8200 §3
}

// port matches a TCP port at offset in the header (RFC 9293 §3.1).
func port(p uint16, offset uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}, equal(binary.BigEndian.AppendUint16(nil, p))}
}

func sourcePort(p uint16) []expr.Any { return port(p, 0) }
func destPort(p uint16) []expr.Any   { return port(p, 2) }

// TCP flags (RFC 9293 §3.1).
const (
	syn    = 0x02
	synAck = 0x12
)

func flags(want, mask byte) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{mask}, Xor: []byte{0}}, equal([]byte{want})}
}

// user matches the owner of the sending socket: the user who made it.
func user(uid uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: reg}, equal(binaryutil.NativeEndian.PutUint32(uid))}
}

// outside matches what did not come from this network namespace itself (ARPHRD_LOOPBACK of linux/if_arp.h).
func outside() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: reg},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_LOOPBACK)}}
}

// anyUser matches when the sending socket has an owner at all.
func anyUser() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: reg},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(^uint32(0))}}
}

func reply() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equal([]byte{1})} // IP_CT_DIR_REPLY
}

// leadTo changes the destination of a connection. The one that the application dialled stays known.
func leadTo(a netip.AddrPort) []expr.Any {
	addr := a.Addr().As4()
	return []expr.Any{&expr.Immediate{Register: 1, Data: addr[:]}, &expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, a.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2}}
}

func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func unreachable() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

func jump(to string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: to}}
}
func back() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }
func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
