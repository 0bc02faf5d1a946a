package main

import (
	"html/template"
	"io"
	"math"
)

// bar is one ratio in the drawing. Lengths are in units of the drawing.
type bar struct {
	Metric, Peer, Said    string
	Y, Length, From, Till int
	Better                bool
}

const (
	barLeft  = 330 // where bars begin
	barUnit  = 200 // the length of a ratio of 1
	barsMost = 3.0 // longer ones are cut off
)

// svg draws the ratios as bars, the spread as a line over each, and a line where Ward and the peer are equal.
func (r *report) svg(to io.Writer) error {
	t, err := template.New("chart").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {{.Height}}" font-family="sans-serif" font-size="13">
<rect width="1000" height="{{.Height}}" fill="#fff"/>
<text x="12" y="24" font-size="16">Ward's figure by the peer's: medians of paired rounds, with their spread</text>
{{range .Bars}}<text x="12" y="{{.Y}}">{{.Metric}}</text><text x="230" y="{{.Y}}">{{.Peer}}</text>
<g transform="translate(` + "{{$.Left}}" + `,{{.Y}})"><rect y="-12" width="{{.Length}}" height="15" fill="{{if .Better}}#3a7d44{{else}}#b5653a{{end}}"/><path d="M{{.From}} -4.5H{{.Till}}" stroke="#222"/></g>
<text x="940" y="{{.Y}}">{{.Said}}</text>
{{end}}<path d="M{{.One}} 36V{{.Height}}" stroke="#222" stroke-dasharray="4 4"/>
</svg>
`)
	if err != nil {
		return err
	}
	length := func(v float64) int { return int(math.Round(barUnit * min(max(v, 0), barsMost))) }
	var bars []bar
	for _, v := range r.Ratios {
		bars = append(bars, bar{Metric: v.Metric, Peer: v.Peer, Said: number(v.Median), Y: 56 + 22*len(bars), Length: length(v.Median), From: length(v.Min), Till: length(v.Max),
			Better: metricNamed(v.Metric).met(v.Median, 1)})
	}
	return t.Execute(to, struct {
		Bars              []bar
		Left, One, Height int
	}{bars, barLeft, barLeft + barUnit, 60 + 22*len(bars)})
}
