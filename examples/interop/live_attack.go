package main

import "context"

func (l *live) checkAttacks(ctx context.Context) {}
