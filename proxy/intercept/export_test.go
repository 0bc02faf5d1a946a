package intercept

// WriteFor writes the rules of r as if each of its units ran in the cgroup with this id, at this level.
func WriteFor(r Rules, id uint64, level uint32) error {
	cgroups := map[string]cgroup{}
	for unit := range r.units() {
		cgroups[unit] = cgroup{id: id, level: level}
	}
	return replace(render(r, cgroups))
}
