package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// printJSON prints one document, indented for people who look at it.
func (a *app) printJSON(raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(raw), "", "  "); err != nil {
		return fmt.Errorf("cannot print the answer of the daemon: %w", err)
	}
	b.WriteByte('\n')
	_, err := a.out.w.Write(b.Bytes())
	return err
}

// printLine prints one document of a stream on one line.
func (a *app) printLine(raw []byte) error {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return fmt.Errorf("cannot print the answer of the daemon: %w", err)
	}
	b.WriteByte('\n')
	_, err := a.out.w.Write(b.Bytes())
	return err
}

// printTable prints t as wide as the terminal allows.
func (a *app) printTable(t *table) error {
	return t.write(a.out.w, a.out.width(), func(s string) string { return a.out.paint(bold, s) })
}

// say writes a line of talk: stderr, never data.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.talk.w, harmless(fmt.Sprintf(format, args...), false))
}

// fact is one line of a description: a name and what is known.
type fact struct{ name, value string }

// printFacts prints what is known of one thing, unknown values left out.
func (a *app) printFacts(facts ...fact) error {
	longest := 0
	for _, f := range facts {
		if f.value != "" {
			longest = max(longest, cells(f.name))
		}
	}
	var b bytes.Buffer
	for _, f := range facts {
		if f.value == "" {
			continue
		}
		value := harmless(f.value, false)
		if w := a.out.width(); w > 0 {
			value = fit(value, max(20, w-longest-2))
		}
		fmt.Fprintf(&b, "%s  %s\n", a.out.paint(dim, pad(f.name, longest)), a.out.paintWord(f.value, value))
	}
	_, err := a.out.w.Write(b.Bytes())
	return err
}

// printValue prints a JSON value for people: a string as its text, everything
// else as JSON, indented when it goes to a terminal.
func (a *app) printValue(raw json.RawMessage) error {
	if a.out.terminal && !isText(raw) {
		return a.printJSON(raw)
	}
	return a.printChunk(raw)
}

// printChunk prints one value of a stream on one line, text as it is.
func (a *app) printChunk(raw json.RawMessage) error {
	if !isText(raw) {
		return a.printLine(raw)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	if a.out.terminal {
		s = harmless(s, true)
	}
	_, err := fmt.Fprintln(a.out.w, s)
	return err
}

// isText reports whether raw is a JSON string.
func isText(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '"' }

// status is the status of a job with its phase where that says more.
func status(j wire.Job) string {
	if j.Phase != "" && j.Phase != wire.JobPhaseQueued && j.Phase != wire.JobPhaseExecuting {
		return string(j.Phase)
	}
	return string(j.Status)
}

// printTableOr prints t for people, or all as JSON.
func (a *app) printTableOr(t *table, all any) error {
	if !a.json {
		return a.printTable(t)
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("cannot print the answer: %w", err)
	}
	return a.printJSON(raw)
}
