package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// checkPrivacy looks for what must never be written down: tokens, and what the patients' records say.
func (w *world) checkPrivacy(ctx context.Context) {
	secrets := map[string]string{"Chalmers": "Patient/example's name", "Pleasantville": "Patient/example's address"}
	for _, t := range w.tokens {
		secrets[t] = "an access token"
		if _, sig, ok := cutLast(t, "."); ok {
			secrets[sig] = "an access token's signature"
		}
	}
	w.report.check("nothing secret is written down", func() (string, error) {
		files, size := 0, 0
		look := func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path) //nolint:gosec // our own folder
			if err != nil {
				return err
			}
			files, size = files+1, size+len(b)
			for secret, what := range secrets {
				if bytes.Contains(b, []byte(secret)) {
					return fmt.Errorf("%s holds %s", path, what)
				}
			}
			return nil
		}
		for _, place := range []string{w.at("logs", "ward.log"), w.at("state"), w.at("run")} {
			if err := filepath.WalkDir(place, look); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("none of %d tokens, and nothing of what records say, in ward's log, state and audit trail (%d files, %d bytes)",
			len(w.tokens), files, size), nil
	})
	w.report.check("ward audit tail masks patients", func() (string, error) {
		said, err := w.ward(ctx, "audit", "tail", "-n", "1000")
		if err != nil {
			return "", err
		}
		if !strings.Contains(said, "read Patient/•••") || strings.Contains(said, "Patient/example") {
			return "", fmt.Errorf("it does not:\n%.500s", said)
		}
		return fmt.Sprintf("%d lines, no patient's id", strings.Count(said, "\n")), nil
	})
}
