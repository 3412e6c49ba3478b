package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// Verdicts.
const (
	passed  = "pass"
	failed  = "FAIL"
	skipped = "skip"
)

// result is one line of the table.
type result struct {
	Check    string  `json:"check"`
	Expected string  `json:"expected"`
	Seen     string  `json:"seen"`
	Verdict  string  `json:"verdict"`
	Seconds  float64 `json:"seconds"`
}

type report struct {
	Started time.Time `json:"started"`
	System  string    `json:"system"`
	Cards   []*card   `json:"cards"`
	Driver  string    `json:"driver"`
	Torch   string    `json:"torch"`
	Version string    `json:"cjmd"`
	Results []result  `json:"results"`
}

func newReport(m *machine) *report {
	return &report{Started: time.Now().UTC().Truncate(time.Second), System: runtime.GOOS + "/" + runtime.GOARCH,
		Cards: m.Cards, Driver: m.Driver, Torch: m.Torch, Version: version}
}

func (r *report) add(one result) { r.Results = append(r.Results, one) }

func (r *report) passed() bool {
	for _, one := range r.Results {
		if one.Verdict == failed {
			return false
		}
	}
	return true
}

// write prints the table and writes the results as JSON, and as Markdown beside it.
func (r *report) write(to io.Writer, path string) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "check\texpected\tseen\tverdict")
	for _, one := range r.Results {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", one.Check, one.Expected, one.Seen, one.Verdict)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("cannot print the results: %w", err)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode the results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write the results: %w", err)
	}
	beside := strings.TrimSuffix(path, ".json") + ".md"
	if err := os.WriteFile(beside, []byte(r.markdown()), 0o644); err != nil {
		return fmt.Errorf("cannot write the results: %w", err)
	}
	_, _ = fmt.Fprintf(to, "\nwritten: %s, %s\n", path, beside)
	return nil
}

// markdown is the table as docs/gpu-results.md has it.
func (r *report) markdown() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "## %s\n\n", r.Started.Format("2006-01-02 15:04 UTC"))
	for _, c := range r.Cards {
		_, _ = fmt.Fprintf(&b, "- %s, %.0f MiB, %.0f of them in use before\n", c.Name, c.TotalMB, c.UsedMB)
	}
	_, _ = fmt.Fprintf(&b, "- driver %s, torch %s, cjmd %s, %s\n\n| check | expected | seen | verdict |\n|---|---|---|---|\n", r.Driver, r.Torch, r.Version, r.System)
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, one := range r.Results {
		_, _ = fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", cell.Replace(one.Check), cell.Replace(one.Expected), cell.Replace(one.Seen), one.Verdict)
	}
	return b.String()
}
