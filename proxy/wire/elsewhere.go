package wire

import (
	"errors"
	"runtime/debug"
)

// elsewhere is a panic on its way from a goroutine that works for a call to the one that has made the call. Nobody
// would catch it in the first, and it would end the process: one peer's odd bytes would take down everybody's calls.
type elsewhere struct {
	value any
	stack []byte
}

// Error does not tell the value, which may hold request data.
func (*elsewhere) Error() string { return "wire: a panic in a goroutine of the call's" }

// caught makes an error of what recover has returned.
func caught(v any) error { return &elsewhere{v, debug.Stack()} }

// rethrow goes on with the panic that is in err, if there is one.
func rethrow(err error) {
	var e *elsewhere
	if errors.As(err, &e) {
		panic(e)
	}
}
