package main

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

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

// A terminal that is closed, or a habit of systemctl reload, must not end the calls that run.
func TestHangupEndsNothing(t *testing.T) {
	said := make(chan string, 1)
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}),
		zapcore.AddSync(writer(func(line []byte) { said <- string(line) })), zap.InfoLevel))
	surviveHangups(t.Context(), log)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if line := <-said; !strings.Contains(line, "SIGTERM") {
		t.Errorf("said %s", line)
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }
