package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// lenient is the FHIR server that falls for tricks.
const lenient = "@asymmetrik/node-fhir-server-core"

// installLenient has npm put the lenient server into the cache, unless it is there.
func (p *parts) installLenient(ctx context.Context, cache string, progress io.Writer) (err error) {
	lists := []string{"lenient/package.json", "lenient/package-lock.json"}
	p.Lenient, err = cached(cache, "lenient", lists, p.Tools.NodeVersion, func(dir string) error {
		fmt.Fprintln(progress, "installing with npm:", dir)
		return command(ctx, progress, dir, p.Tools.NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	})
	if err != nil {
		return err
	}
	b, err := files.ReadFile(lists[0])
	if err != nil {
		return err
	}
	var l struct{ Dependencies map[string]string }
	if err := json.Unmarshal(b, &l); err != nil {
		return err
	}
	p.What[lenient] = l.Dependencies[lenient]
	return nil
}

// trick is one way around a gateway: a row of FHIR's bypass table, or a spelling of one.
type trick struct {
	row  int
	name string
	// as is whose token it carries: lee, a physician at the EHR, or anna, a patient at the portal.
	as string
	// request is the request's bytes: without an Authorization field, which is put after the first line.
	request string
	// falls says whether the lenient server, asked directly, falls for it, and fell how to tell: nil is a success.
	falls bool
	fell  func(answer) bool

	// status and cause are Ward's answer. With cause "" the call is allowed, in the harmless form that reaches shows.
	status int
	cause  string
	// reaches is the first line of what the FHIR server gets of it, "GET /Patient/example"; "" is nothing at all.
	reaches string
	// lacks are fields that the FHIR server must not get.
	lacks []string
	// like is a trick whose answer must be the same but for its decision's id: nothing may be learned from this one.
	like string
}

// bypass tries every trick twice: on the lenient server itself, and by the way of Ward, with a table of what
// happened. Ward must answer as it should, and nothing that it refuses may reach the server.
func (w *world) bypass(ctx context.Context) {
	tokens := map[string]string{}
	w.report.check("tokens", func() (string, error) {
		for _, p := range people {
			t, err := w.login(ctx, p.client, p.user, p.scope, w.clinic.Audience)
			if err != nil {
				return "", err
			}
			tokens[p.as] = t
		}
		return fmt.Sprintf("oidc-provider gave %d", len(tokens)), nil
	})
	if w.report.failed > 0 {
		return
	}
	var table bytes.Buffer
	columns := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintf(columns, "row\ttrick\t%s itself\tthrough Ward\tat the server\n", lenient)
	answers := map[string]answer{}
	for _, t := range tricks() {
		if ctx.Err() != nil {
			return
		}
		w.report.check(fmt.Sprintf("row %d: %s", t.row, t.name), func() (string, error) {
			direct, err := w.direct(ctx, t)
			if err != nil {
				return "", err
			}
			through, saw, err := w.through(ctx, t, tokens[t.as])
			if err != nil {
				return "", err
			}
			answers[t.name] = through
			itself := fmt.Sprintf("does not fall for it: %d", direct.Status)
			if t.fell(direct) {
				itself = fmt.Sprintf("falls for it: %d", direct.Status)
			}
			at := "nothing"
			if saw != nil {
				at = saw.Method + " " + saw.URL
			}
			said := strconv.Itoa(through.Status)
			if through.Status == t.status && t.cause != "" {
				said += " " + t.cause
			}
			fmt.Fprintf(columns, "%d\t%s\t%s\t%s\t%s\n", t.row, t.name, itself, said, at)
			return fmt.Sprintf("the server itself %s; Ward %s", itself, said), t.judge(direct, through, saw, answers)
		})
	}
	_ = columns.Flush()
	fmt.Fprintf(w.report.out, "\n%s\n", table.String())
	w.report.check("the trail", func() (string, error) {
		trail, err := w.trail(ctx)
		if err != nil {
			return "", err
		}
		for _, t := range tricks() {
			records := trail[answers[t.name].decision()]
			switch last := len(records) - 1; {
			case last < 0:
				return "", fmt.Errorf("%s: no record of decision %q", t.name, answers[t.name].decision())
			case t.cause != "" && records[last].Cause != t.cause:
				return "", fmt.Errorf("%s: the trail says %s (%s), not %s", t.name, records[last].Cause, records[last].Detail, t.cause)
			}
		}
		return fmt.Sprintf("tells the cause of each of %d", len(answers)), nil
	})
}

// people are whose tokens the tricks carry, and the users as whom their applications run.
var people = []struct {
	as, client, user, scope string
	uid                     int
}{
	{"lee", "ehr", "dr.lee", scopeEHR, uidEHR},
	{"anna", "smart-portal", "anna", scopePatient, uidPortal},
}

// judge says what went otherwise than it should.
func (t trick) judge(direct, through answer, saw *sighting, answers map[string]answer) error {
	if got := t.fell(direct); got != t.falls {
		return fmt.Errorf("the server itself falls for it: %v, not %v: %d %.300s", got, t.falls, direct.Status, direct.Body)
	}
	if through.Status != t.status {
		return fmt.Errorf("through Ward: %d instead of %d: %.400s", through.Status, t.status, through.Body)
	}
	if through.decision() == "" {
		return errors.New("the answer through Ward bears no decision")
	}
	switch {
	case t.reaches == "" && saw != nil:
		return fmt.Errorf("the server got %s %s", saw.Method, saw.URL)
	case t.reaches != "" && saw == nil:
		return errors.New("the server got nothing")
	case saw != nil && saw.Method+" "+saw.URL != t.reaches:
		return fmt.Errorf("the server got %s %s, not %s", saw.Method, saw.URL, t.reaches)
	}
	for _, name := range t.lacks {
		for got, values := range saw.Headers {
			if strings.EqualFold(strings.ReplaceAll(got, "_", "-"), name) && slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, forgery) }) {
				return fmt.Errorf("the server got %s: %s", got, values)
			}
		}
	}
	if t.like == "" {
		return nil
	}
	other, ok := answers[t.like]
	if !ok {
		return fmt.Errorf("%q has not been tried", t.like)
	}
	if a, b := through.faceless(), other.faceless(); a != b {
		return fmt.Errorf("it can be told from %q:\n%s\n%s", t.like, a, b)
	}
	return nil
}

// faceless is all of an answer but what differs between any two.
func (a answer) faceless() string {
	h := a.Header.Clone()
	h.Del("Date")
	d := a.decision()
	h.Del("Ward-Decision")
	var b bytes.Buffer
	fmt.Fprintln(&b, a.Status)
	_ = h.Write(&b)
	b.Write(a.Body)
	return strings.ReplaceAll(b.String(), d, "DECISION")
}

// direct tries a trick on the server itself.
func (w *world) direct(ctx context.Context, t trick) (answer, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", w.fhirSocket())
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, t.request); err != nil {
		return answer{}, err
	}
	// Smuggled requests are answered too: the first answer tells what became of the request.
	_ = c.SetReadDeadline(time.Now().Add(patience))
	method, _, _ := strings.Cut(t.request, " ")
	return parse(bufio.NewReader(c), method)
}

// through tries a trick by the way of Ward, as the application whose token it is.
func (w *world) through(ctx context.Context, t trick, token string) (answer, *sighting, error) {
	uid := 0
	for _, p := range people {
		if p.as == t.as {
			uid = p.uid
		}
	}
	line, rest, _ := strings.Cut(t.request, "\n")
	request := line + "\nAuthorization: Bearer " + token + "\r\n" + rest
	in, err := json.Marshal(map[string]any{"socket": w.socket(), "requests": []string{base64.StdEncoding.EncodeToString([]byte(request))}})
	if err != nil {
		return answer{}, nil, err
	}
	before, err := w.sightings()
	if err != nil {
		return answer{}, nil, err
	}
	r, err := w.run(ctx, program{uid: uid, argv: []string{w.at("bin", "node"), w.at("lenient", "raw.mjs")}, stdin: bytes.NewReader(in)})
	if err != nil {
		return answer{}, nil, err
	}
	var got struct{ Reply []byte }
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		return answer{}, nil, fmt.Errorf("the client: %w: %s", err, r.stderr)
	}
	method, _, _ := strings.Cut(t.request, " ")
	in2 := bufio.NewReader(bytes.NewReader(got.Reply))
	a, err := parse(in2, method)
	if err != nil {
		return a, nil, fmt.Errorf("the answer through Ward: %w: %.200q", err, got.Reply)
	}
	w.hear(a)
	w.report.note("%s: %s", t.name, a.brief())
	if more := in2.Buffered(); more > 0 {
		return a, nil, fmt.Errorf("%d bytes follow Ward's answer", more)
	}
	after, err := w.sightings()
	switch more := after[len(before):]; {
	case err != nil:
		return a, nil, err
	case len(more) > 1:
		return a, nil, fmt.Errorf("the server got %d requests", len(more))
	case len(more) == 1:
		return a, &more[0], nil
	}
	return a, nil, nil
}

func parse(in *bufio.Reader, method string) (answer, error) {
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, err
}

// sightings gives every request that has reached the server.
func (w *world) sightings() (out []sighting, err error) {
	b, err := os.ReadFile(w.seenLog())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		var s sighting
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return nil, fmt.Errorf("the FHIR server's log: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}
