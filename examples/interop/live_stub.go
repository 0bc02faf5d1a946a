package main

import "context"

func (l *live) checkLatency(ctx context.Context)               {}
func (l *live) checkStreams(ctx context.Context)               {}
func (l *live) checkAttacks(ctx context.Context)               {}
func actWatch(ctx context.Context, e errand, v *voice) error   { return nil }
func actHold(ctx context.Context, e errand, v *voice) error    { return nil }
func actStreams(ctx context.Context, e errand, v *voice) error { return nil }
func actLinger(ctx context.Context, e errand, v *voice) error  { return nil }
func actSquat(ctx context.Context, e errand, v *voice) error   { return nil }
func actTry(ctx context.Context, e errand, v *voice) error     { return nil }
