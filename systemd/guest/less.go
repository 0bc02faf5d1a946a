package main

func (w *world) less() ([]string, error) { return nil, nil }
