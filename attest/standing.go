package attest

// Standing is what anybody may see of a process at one moment, without any right to look into it. As long as it is the
// same, the process has not replaced its program, and is in the same groups and the same cgroup; who it is, and as which
// user, its reference tells. What an attestation found for a process is then true of it still, as far as the process or
// its user could have changed it.
//
// The zero value is that of a process of which not enough can be seen. It is like no other, itself included: see Same.
type Standing struct {
	// Changes numbers the last time at which the process, or by lack of memory any other, replaced its program or
	// changed its user. It means nothing beyond the pinner that gave it.
	Changes uint64
	Cgroup  uint64 // as cgroup2 numbers them
	Groups  string // the supplementary groups at connect, in an encoding that only compares
}

// Known reports whether enough could be seen.
func (s Standing) Known() bool { return s.Changes != 0 && s.Cgroup != 0 }

// Same reports whether a process that was seen as t before is unchanged now that it is seen as s.
func (s Standing) Same(t Standing) bool { return s.Known() && s == t }
