// Package broker is both ends of the SPIFFE Broker API on one host: the server in the agent, which lends the identities
// of local processes to this host's proxy, and the client in a proxy that runs apart from the agent.
//
//	server   security header → the broker itself (pinned at accept, attested, on the list) → the reference's process
//	         (pinned anew by the agent) → workload.Service.Lend → encode → stream
//	client   reference → Borrow → the agent's word → Loan, kept up to date until the process or its entitlement ends
//
// The server stands on package workload/endpoint, as the Workload API does; here is whom it admits and what it lends.
//
// Why: a proxy that faces the network must not be able to read other processes. It has no capability; it takes from the
// kernel a reference to who connected (attest/peer), which it cannot read more out of, and the agent, which can, does
// the rest. What the proxy then holds are short SVIDs with keys of their own, of workloads that opted in, for as long
// as they use it.
//
// What the server guards against:
//
//   - Anybody else asking. The standard has brokers authenticate by mutual TLS (SPIFFE Broker Endpoint §5). On a Unix
//     socket the kernel's word is stronger and needs no key at rest: the peer is pinned before a byte is read, attested
//     like any workload, and must match one of the sets of selectors in config. It is attested again every few seconds
//     and whenever the list changes; when it exits, replaces its program or is taken off the list, its streams end.
//   - A reference that comes to mean another process. Only [wardref.Reference] is taken; the standard's bare pid is
//     refused. What the reference says is looked up anew and pinned, and every fact is read by the agent itself
//     (SPIFFE Broker API §3.1.1).
//   - A proxy taking more than it is to have: only SVIDs of entries with proxy: true are lent, for 15 minutes at most,
//     and each lending is reported with the broker that asked ([workload.Observer]).
//   - Local users crowding it out: connections of those who cannot be a broker, or turn out not to be one, have few places
//     of their own.
//
// What it does not guard against: a captured proxy that refers to a process which never called it. A sound reference can be
// made of any process on the host, so that such a proxy can act as every workload here that has opted in and runs, until
// it is found out; its lendings are in the agent's trail, where no call of its own belongs to them. Whoever cannot bear
// that for a workload leaves proxy: true out and lets the workload speak mutual TLS itself.
//
// What the client guards against: an identity on yesterday's word. A Borrow succeeds only on an answer that a live
// agent gives after it was called, also when the process is known already, or on one given a moment before about a process
// that the kernel shows to be unchanged since ([Client.BorrowSeen]); the agent says the same ID after a reconnect or the
// loan is over; and no SVID is handed out past its end, however long the agent stays away. The client in turn wants to
// know that its agent is behind the socket (§5): [ServedBy].
//
// An agent that restarts or is upgraded costs nothing: loans keep what they have and reconnect, and a Borrow waits for
// it for a while. A definite refusal ends a loan at once. Refusals bear the reference under which the agent reported
// them, so that both trails can be joined.
//
// The JWT-SVID profile answers Unimplemented: it is disabled in the sense of SPIFFE Broker API §1.
//
// Sections in comments: BE is the SPIFFE Broker Endpoint standard, BA the SPIFFE Broker API, both incubating
// (github.com/spiffe/spiffe/tree/main/standards).
package broker

const (
	header   = "broker.spiffe.io" // BE §3
	mebibyte = 1 << 20
)
