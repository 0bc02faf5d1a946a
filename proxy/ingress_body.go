package proxy

import (
	"errors"
	"io"
	"os"

	"github.com/wardmesh/ward/proxy/fhir"
	"github.com/wardmesh/ward/proxy/wire"
)

func (c *inbound) body() error {
	r := &c.x.Request
	takes := c.act.Form || c.act.Kind == fhir.Create || c.act.Kind == fhir.Update
	if !takes {
		if r.Length != 0 {
			return Refuse(CauseMalformed, "a %s has no body", c.act.Kind)
		}
		return nil
	}
	body, err := c.readBody(r)
	if err != nil {
		return err
	}
	if c.act.Form {
		if c.act, err = c.act.WithForm(body, one(c.values("Content-Type"))); err != nil {
			return FromFHIR(err)
		}
		c.facts.Interactions[0] = c.act
		c.payload = c.act.FormBody()
		return nil
	}
	if err := fhir.JSONMedia(one(c.values("Content-Type"))); err != nil {
		return FromFHIR(err)
	}
	content, err := fhir.ParseResource(body, c.content())
	if err != nil {
		return FromFHIR(err)
	}
	if err := fhir.CheckWrite(c.act, content); err != nil {
		return FromFHIR(err)
	}
	c.facts.Content, c.payload = content, body
	return nil
}

// one gives the only value of a field, or a value that no media type has when there are several.
func one(values []string) string {
	switch len(values) {
	case 0:
		return ""
	case 1:
		return values[0]
	}
	return "several"
}

func (c *inbound) readBody(r *wire.Request) ([]byte, error) {
	if err := fhir.PlainCoding(one(c.values("Content-Encoding"))); err != nil {
		return nil, FromFHIR(err)
	}
	if r.Length > c.MaxBody {
		return nil, Refuse(CauseTooLarge, "%d bytes announced, %d allowed", r.Length, c.MaxBody)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, c.MaxBody+1))
	if err != nil {
		switch {
		case c.x.Context().Err() != nil:
			return nil, Refuse(CauseTimeout, "the caller went away")
		case c.ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
			return nil, Refuse(CauseTimeout, "the body did not arrive in time")
		}
		return nil, Refuse(CauseMalformed, "the body ended early, or is not framed as HTTP")
	}
	if int64(len(body)) > c.MaxBody {
		return nil, Refuse(CauseTooLarge, "more than %d bytes", c.MaxBody)
	}
	return body, nil
}

func (c *inbound) content() fhir.ContentOptions {
	return fhir.ContentOptions{Bases: []string{"http://" + c.Service.Name + c.Service.Base}}
}
