package authority

// WithSteps has f called after each step of the first run.
func WithSteps(o Options, f func(step string)) Options {
	o.reached = f
	return o
}
