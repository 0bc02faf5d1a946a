package authority

// WithSteps has f called at each moment of the first run and of rotation at which a kill may come.
func WithSteps(o Options, f func(step string)) Options {
	o.reached = f
	return o
}
