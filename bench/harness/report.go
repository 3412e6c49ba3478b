package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// Result is one line of the table. The pointers are nil where there is nothing
// to compare with or no aim.
type Result struct {
	Row         string   `json:"row"`
	Metric      string   `json:"metric"`
	Value       float64  `json:"value"`
	Unit        string   `json:"unit"`
	Beside      string   `json:"beside"`
	BesideValue *float64 `json:"beside_value"`
	Ratio       *float64 `json:"ratio"`
	Aim         string   `json:"aim"`
	Met         *bool    `json:"met"`
}

// Of begins a result without anything beside it and without an aim.
func Of(row, metric string, value float64, unit string) Result {
	return Result{Row: row, Metric: metric, Value: round(value), Unit: unit}
}

// Against puts another measurement of the same run beside it.
func (r Result) Against(what string, value float64) Result {
	r.Beside = what
	rounded := round(value)
	r.BesideValue = &rounded
	if value != 0 {
		ratio := round(r.Value / value)
		r.Ratio = &ratio
	}
	return r
}

// AtLeast and AtMost set the aim for the value itself.
func (r Result) AtLeast(limit float64) Result { return r.aim(">=", limit, "", r.Value >= limit) }
func (r Result) AtMost(limit float64) Result  { return r.aim("<=", limit, "", r.Value <= limit) }

// RatioAtLeast and RatioAtMost set the aim for the ratio to what stands beside it.
func (r Result) RatioAtLeast(limit float64) Result {
	return r.aim(">=", limit, "x", r.Ratio != nil && *r.Ratio >= limit)
}

func (r Result) RatioAtMost(limit float64) Result {
	return r.aim("<=", limit, "x", r.Ratio != nil && *r.Ratio <= limit)
}

func (r Result) aim(op string, limit float64, unit string, met bool) Result {
	if unit == "" {
		unit = " " + r.Unit
	}
	r.Aim, r.Met = fmt.Sprintf("%s %s%s", op, number(limit), unit), &met
	return r
}

// round keeps four significant digits: more would be noise.
func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

func number(v float64) string {
	switch {
	case v == math.Trunc(v) || math.Abs(v) >= 1000:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

// Table prints results for people.
func Table(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ROW\tMETRIC\tVALUE\tUNIT\tBESIDE\tVALUE\tRATIO\tAIM\tMET")
	for _, r := range results {
		beside, ratio, met := "", "", ""
		if r.BesideValue != nil {
			beside = number(*r.BesideValue)
		}
		if r.Ratio != nil {
			ratio = number(*r.Ratio)
		}
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*r.Met]
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Row, r.Metric, number(r.Value), r.Unit, r.Beside, beside, ratio, r.Aim, met)
	}
	return t.Flush()
}

// Write stores v as JSON in dir/name, through a temporary file.
func Write(dir, name string, v any) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make %s: %w", dir, err)
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
