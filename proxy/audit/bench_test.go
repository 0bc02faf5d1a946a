package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/proxy"
)

// benchRecord is what ingress records of an ordinary read.
func benchRecord() *proxy.Record {
	return &proxy.Record{Schema: proxy.RecordSchema, Stage: proxy.StageOutcome, Hop: proxy.HopIngress, Time: testTime,
		Decision: "01JD7Q0000000000000000000A", Peer: "01JD7Q0000000000000000000B",
		Service: "fhir.ehr.mesh.internal", Caller: "spiffe://clinic.example/app/portal", Issuer: "https://id.clinic.example/realms/clinic",
		Client: "portal", User: "248289761001", Name: "dr.lee", TokenID: "5f1c6a3e-7f0b-4a57-9d6c-0c1b2a3d4e5f", Purpose: "TREAT", Method: "GET",
		Interactions: []proxy.Acted{{Kind: "read", Type: "Patient", ID: "example-123"}}, Patients: []string{"example-123"},
		Effect: "allow", Policies: []string{"own-department"}, PolicySet: "9f31c2d4a1b0", Status: 200, Bytes: 1536, Micros: 1234, Complete: true}
}

func intentRecord() *proxy.Record {
	r := benchRecord()
	r.Stage, r.Complete = proxy.StageIntent, false
	r.Inputs = json.RawMessage(`{"principal":{"type":"Workload","id":"spiffe://clinic.example/app/portal"},"action":"read","resource":{"type":"Patient","id":"example-123"},` +
		`"context":{"role":["physician"],"department":"cardiology","purpose":"TREAT","risk":0,"scopes":["patient/Patient.rs","patient/Observation.rs"]}}`)
	return r
}

// cpu is the time that this process has used.
func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAudit: append is what a caller pays for one record while the writer keeps up beside it; cpu-ns/op is what
// the process pays in all, hashing and writing included. durable is records that are waited for, by so many goroutines.
func BenchmarkAudit(b *testing.B) {
	for name, r := range map[string]*proxy.Record{"append": benchRecord(), "append-inputs": intentRecord()} {
		b.Run(name, func(b *testing.B) {
			l := mustOpen(b, testOptions(b))
			line, err := appendRecord(nil, r, time.Now)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			began := cpu()
			n := 0
			for b.Loop() {
				receipt, err := l.Append(r)
				if err != nil {
					b.Fatal(err)
				}
				if n++; n%1024 == 0 { // the queue must not fill: that would measure the disk
					b.StopTimer()
					if err := receipt.Wait(context.Background()); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(cpu()-began)/float64(b.N), "cpu-ns/op")
		})
	}
	b.Run("encode", func(b *testing.B) {
		r := benchRecord()
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			buf, _ = appendRecord(buf[:0], r, time.Now)
		}
	})
	for _, waiters := range []int{1, 64} {
		b.Run(fmt.Sprintf("durable-%d", waiters), func(b *testing.B) {
			o := testOptions(b)
			l := mustOpen(b, o)
			r := benchRecord()
			var failed atomic.Bool
			b.SetParallelism(max(1, waiters/runtime.GOMAXPROCS(0)))
			if waiters == 1 {
				for b.Loop() {
					mustAdd(b, l, r)
				}
				return
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					receipt, err := l.Append(r)
					if err != nil || receipt.Wait(context.Background()) != nil {
						failed.Store(true)
					}
				}
			})
			if failed.Load() {
				b.Fatal("a record was not durable")
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkFindAndVerify(b *testing.B) {
	o := testOptions(b)
	l := mustOpen(b, o)
	r := benchRecord()
	const n = 200_000
	for i := range n {
		r.Decision = fmt.Sprintf("01JD7Q%020d", i)
		if _, err := l.AppendContext(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("find-absent", func(b *testing.B) {
		for b.Loop() {
			if found, err := Find(context.Background(), o.Dir, "01JD7R"); err != nil || len(found) > 0 {
				b.Fatal(found, err)
			}
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/n*1e9, "ns/record")
	})
	b.Run("verify", func(b *testing.B) {
		v := verifier(b, o)
		for b.Loop() {
			if _, err := Verify(context.Background(), o.Dir, v); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/n*1e9, "ns/record")
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			l, err := Open(context.Background(), again(o))
			if err != nil {
				b.Fatal(err)
			}
			l.Close()
		}
	})
}
