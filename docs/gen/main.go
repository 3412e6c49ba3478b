// Command gen draws the state diagrams of docs/ARCHITECTURE.md from the tables
// that the program moves along. A test holds the page equal to them.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
)

//go:generate go run . ../ARCHITECTURE.md

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen PAGE")
		os.Exit(2)
	}
	if err := rewrite(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func rewrite(path string) error {
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("cannot read the page: %w", err)
	}
	want, err := render(string(have))
	if err != nil || want == string(have) {
		return err
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		return fmt.Errorf("cannot write the page: %w", err)
	}
	return nil
}

// render returns page with what stands between its markers drawn anew.
func render(page string) (string, error) {
	for _, d := range []struct{ name, diagram string }{
		{"states:jobs", jobs.Mermaid()},
		{"states:workers", supervisor.StateDiagram()},
	} {
		begin, end := "<!-- "+d.name+" begin -->\n", "<!-- "+d.name+" end -->"
		head, rest, ok := strings.Cut(page, begin)
		_, tail, closed := strings.Cut(rest, end)
		if !ok || !closed {
			return "", fmt.Errorf("cannot draw %s: the page lacks its markers", d.name)
		}
		page = head + begin + "\n```mermaid\n" + quote(d.diagram) + "```\n\n" + end + tail
	}
	return page, nil
}

// quote keeps a sentence from ending at what Mermaid takes for syntax: a second
// colon, a semicolon.
func quote(diagram string) string {
	var b strings.Builder
	for line := range strings.Lines(diagram) {
		head, text, _ := strings.Cut(line, ":")
		b.WriteString(head)
		if text != "" {
			b.WriteString(":" + strings.NewReplacer(":", ",", ";", ",").Replace(text))
		}
	}
	return b.String()
}
