package main

import (
	"bytes"
	"testing"

	"go.uber.org/zap"

	"github.com/wardmesh/ward/agent/config"
)

func TestLogIsNotFilledByOneMessage(t *testing.T) {
	var out bytes.Buffer
	log, err := newLog(config.Log{Level: "info"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	const tries = 10_000
	for i := range tries {
		log.Info("call refused", zap.Int("try", i))
	}
	log.Info("ready")
	n := bytes.Count(out.Bytes(), []byte("\n"))
	if n < logBurst || n > tries/10 {
		t.Errorf("%d lines of %d", n, tries)
	}
	if !bytes.Contains(out.Bytes(), []byte(`"ready"`)) {
		t.Error("another message was lost among them")
	}
}
