package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// report is what a run says in the end.
type report struct {
	Ratios  []ratio           `json:"ratios"`
	Values  []value           `json:"values"`
	Raw     []sample          `json:"raw"`
	LeftOut map[string]string `json:"left_out,omitempty"` // peers, and why
}

// ratio is Ward's figure by a peer's, round by round.
type ratio struct {
	Metric string `json:"metric"`
	Peer   string `json:"peer"`
	spread
}

// value is the figure of one subject: Ward, unless it says otherwise.
type value struct {
	Metric string `json:"metric"`
	Of     string `json:"of,omitempty"`
	Unit   string `json:"unit"`
	spread
}

// summarise makes a report of the samples.
func summarise(r *results) *report {
	rep := &report{Ratios: []ratio{}, Values: []value{}, Raw: slices.Clone(r.samples), LeftOut: r.leftOut}
	for _, m := range metrics() {
		rounds := map[string]map[int]float64{}
		for _, s := range r.samples {
			if s.Metric == m.name {
				if rounds[s.Of] == nil {
					rounds[s.Of] = map[int]float64{}
				}
				rounds[s.Of][s.Round] = s.Value
			}
		}
		for _, of := range append([]string{ward}, peerNames()...) {
			if len(rounds[of]) == 0 {
				continue
			}
			v := value{Metric: m.name, Unit: m.unit, spread: spreadOf(slices.Collect(maps.Values(rounds[of])))}
			if of != ward {
				v.Of = of
				if paired := pairs(rounds[ward], rounds[of]); len(paired) > 0 {
					rep.Ratios = append(rep.Ratios, ratio{Metric: m.name, Peer: of, spread: spreadOf(paired)})
				}
			}
			rep.Values = append(rep.Values, v)
		}
	}
	return rep
}

// pairs gives the ratios of the rounds that have both. Where a peer's figure is nothing, or less (a chain that is as fast
// as none, within the noise), there is no ratio.
func pairs(a, b map[int]float64) (ratios []float64) {
	for round, v := range a {
		if w, ok := b[round]; ok && w > 0 {
			ratios = append(ratios, v/w)
		}
	}
	return ratios
}

func (r *report) value(metric, of string) (spread, bool) {
	if of == ward {
		of = ""
	}
	i := slices.IndexFunc(r.Values, func(v value) bool { return v.Metric == metric && v.Of == of })
	if i < 0 {
		return spread{}, false
	}
	return r.Values[i].spread, true
}

func (r *report) ratio(metric, peer string) (spread, bool) {
	i := slices.IndexFunc(r.Ratios, func(v ratio) bool { return v.Metric == metric && v.Peer == peer })
	if i < 0 {
		return spread{}, false
	}
	return r.Ratios[i].spread, true
}

func (r *report) json(to io.Writer) error {
	e := json.NewEncoder(to)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// table shows Ward's figures, the peers' beside them, and what Ward has set itself.
func (r *report) table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "METRIC\tUNIT\tOF\tMEDIAN\tMIN\tMAX\tWARD/IT\tMIN\tMAX\tMUST\tSTRETCH\t")
	for _, m := range metrics() {
		name, unit := m.name, m.unit
		for _, of := range append([]string{ward}, peerNames()...) {
			v, ok := r.value(m.name, of)
			if !ok {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t", name, unit, of, number(v.Median), number(v.Min), number(v.Max))
			figure, key := v, ""
			if of != ward {
				if figure, ok = r.ratio(m.name, of); ok {
					fmt.Fprintf(w, "%s\t%s\t%s\t", number(figure.Median), number(figure.Min), number(figure.Max))
				} else {
					fmt.Fprint(w, "\t\t\t")
				}
				key = of
			} else {
				fmt.Fprint(w, "\t\t\t")
			}
			fmt.Fprintln(w, m.verdict(key, figure.Median, ok))
			name, unit = "", ""
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, peer := range slices.Sorted(maps.Keys(r.LeftOut)) {
		fmt.Fprintf(to, "left out: %s: %s\n", peer, r.LeftOut[peer])
	}
	return nil
}

// verdict is two columns: what must be and what may be hoped for, and whether it is so.
func (m metric) verdict(peer string, figure float64, known bool) string {
	i := slices.IndexFunc(m.aims, func(a aim) bool { return a.peer == peer })
	if i < 0 || !known {
		return "\t\t"
	}
	sign := "≤"
	if m.more {
		sign = "≥"
	}
	said := func(aim float64) string {
		if m.met(figure, aim) {
			return sign + number(aim) + " met\t"
		}
		return sign + number(aim) + " missed\t"
	}
	return said(m.aims[i].must) + said(m.aims[i].stretch)
}

// number writes three digits that count.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return strings.TrimPrefix(strconv.FormatFloat(v, 'f', min(digits, 6), 64), "+")
}
