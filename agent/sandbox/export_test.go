package sandbox

import "github.com/wardmesh/ward/agent/config"

// Confined is the report of a process that a kernel which knows it all has confined to a.
func Confined(role config.Role, a Allowance) Report {
	return Report{Role: role, ABI: abiScopes, Files: true, Network: true, Scopes: true, allowed: a}
}
