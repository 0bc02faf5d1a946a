// Package wardref is Ward's own type of workload reference on the SPIFFE Broker API: the message ward.broker.v1.Reference,
// generated from wardref.proto. Package broker packs it, unpacks it, and says what it refuses.
//
// Why a type of our own: the standard's reference to a local process is a bare process id, which may belong to somebody
// else by the time it is read (SPIFFE Broker API §3.1.1 leaves it to the server to be certain, and nothing in that
// message lets it be). These name a process by a number that the kernel gives out once.
//
// The standard asks that extensions be documented with their name (§3.1.4): the .proto is that document.
package wardref

//go:generate go run -modfile=../../../.ci/tools.mod generate.go
