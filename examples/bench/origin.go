package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// The sizes of the replies.
const (
	patientBytes = 1536
	bulkBytes    = 50_000_000
	// A reply that is checked is read whole first, and Ward reads at most 8 MiB.
	checkedBytes = 7_500_000
)

// origin is the FHIR server at the end of each chain. It answers whatever it is asked from bytes that it made before, so
// that next to nothing of a measurement is its own. It understands no HTTP beyond the end of a head.
type origin struct{ patient, bundle, line []byte }

func newOrigin() (*origin, error) {
	patient, err := padded(patientBytes)
	if err != nil {
		return nil, err
	}
	bundle, err := searchset(checkedBytes)
	if err != nil {
		return nil, err
	}
	line := append(observation(1), '\n')
	return &origin{
		patient: append(head("application/fhir+json", len(patient)), patient...),
		bundle:  append(head("application/fhir+json", len(bundle)), bundle...),
		line:    bytes.Repeat(line, (1<<20)/len(line)),
	}, nil
}

func head(kind string, length int) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, length)
}

// padded is a Patient of exactly n bytes.
func padded(n int) ([]byte, error) {
	const of = `{"resourceType":"Patient","id":"example","meta":{"versionId":"1"},"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">%s</div>"},` +
		`"identifier":[{"system":"urn:oid:1.2.36.146.595.217.0.1","value":"12345"}],"active":true,"name":[{"use":"official","family":"Chalmers","given":["Peter","James"]}],` +
		`"gender":"male","birthDate":"1974-12-25","managingOrganization":{"reference":"Organization/1"}}`
	short := fmt.Sprintf(of, "")
	if n < len(short) {
		return nil, fmt.Errorf("a Patient of %d bytes is too short", n)
	}
	b := fmt.Appendf(nil, of, strings.Repeat("x", n-len(short)))
	if len(b) != n || !json.Valid(b) {
		return nil, errors.New("the Patient is not what it should be")
	}
	return b, nil
}

// observation is one resource, about as long as HL7's own examples are.
func observation(n int) []byte {
	return fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%[1]d","meta":{"versionId":"1","profile":["http://hl7.org/fhir/StructureDefinition/vitalsigns"]},`+
		`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\"><p><b>Generated Narrative with Details</b></p><p><b>id</b>: o%[1]d</p><p><b>status</b>: final</p><p><b>category</b>: Vital Signs</p>`+
		`<p><b>code</b>: Heart rate</p><p><b>subject</b>: <a>Patient/example</a></p><p><b>value</b>: %[3]d beats/minute</p></div>"},"status":"final",`+
		`"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category","code":"vital-signs","display":"Vital Signs"}],"text":"Vital Signs"}],`+
		`"code":{"coding":[{"system":"http://loinc.org","code":"8867-4","display":"Heart rate"}],"text":"Heart rate"},"subject":{"reference":"Patient/example"},`+
		`"effectiveDateTime":"2026-11-20T10:%02[2]d:00Z","valueQuantity":{"value":%[3]d,"unit":"beats/minute","system":"http://unitsofmeasure.org","code":"/min"}}`, n, n%60, 50+n%60)
}

// searchset is a Bundle of one patient's observations, of n bytes at most.
func searchset(n int) ([]byte, error) {
	b := []byte(`{"resourceType":"Bundle","type":"searchset","entry":[`)
	for i := 0; ; i++ {
		entry := fmt.Appendf(nil, `{"resource":%s,"search":{"mode":"match"}}`, observation(i))
		if len(b)+len(entry)+3 > n {
			break
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, entry...)
	}
	if b = append(b, "]}"...); !json.Valid(b) {
		return nil, errors.New("the Bundle is not what it should be")
	}
	return b, nil
}

// runOrigin serves at the addresses, each `unix:/path` or host:port, until the process is ended.
func runOrigin(addresses []string) error {
	o, err := newOrigin()
	if err != nil {
		return err
	}
	ended := make(chan error, len(addresses))
	for _, address := range addresses {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		if network == "unix" {
			if err := os.Chmod(address, 0o666); err != nil { //nolint:gosec // every proxy has a user of its own
				return err
			}
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					ended <- err
					return
				}
				go o.serve(c)
			}
		}()
	}
	return <-ended
}

func (o *origin) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	buf := make([]byte, 16<<10)
	for have := 0; ; {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		for {
			end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
			if end < 0 {
				break
			}
			if o.answer(c, buf[:end]) != nil {
				return
			}
			have = copy(buf, buf[end+4:have])
		}
		if have == len(buf) {
			return
		}
	}
}

func (o *origin) answer(c io.Writer, request []byte) error {
	_, target, _ := bytes.Cut(request, []byte(" "))
	switch {
	case bytes.HasPrefix(target, []byte("/Observation?")):
		_, err := c.Write(o.bundle)
		return err
	case bytes.HasPrefix(target, []byte("/DocumentReference/")):
		if _, err := c.Write(head("application/fhir+ndjson", bulkBytes)); err != nil {
			return err
		}
		for left := bulkBytes; left > 0; {
			n, err := c.Write(o.line[:min(left, len(o.line))])
			if err != nil {
				return err
			}
			left -= n
		}
		return nil
	}
	_, err := c.Write(o.patient)
	return err
}
