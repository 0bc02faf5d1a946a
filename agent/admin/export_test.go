package admin

import "context"

// WithUID is a connection's context in which the other end runs as uid.
func WithUID(ctx context.Context, uid uint32) context.Context {
	return context.WithValue(ctx, uidKey{}, uid)
}

// ParseOrder is parseOrder.
var ParseOrder = parseOrder
