package plugins

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cjmd/cjmd/internal/execspec"
)

// readExec reads how a program of runtime exec is used.
func readExec(f *fields, m *Manifest) {
	e, given := f.object("exec")
	if m.Runtime != "exec" {
		if given {
			f.fail("exec", "is for runtime exec; add \"runtime: exec\" or delete it")
		}
		return
	}
	s := &execspec.Spec{Name: m.Name, Version: m.Version, Here: filepath.Dir(m.Path), Command: m.Command}
	s.Args = readExecArgs(e)
	s.Stdin = readExecStdin(e)
	s.Stdout = e.text("stdout")
	if r, ok := e.object("result"); ok {
		s.Result = &execspec.Result{File: r.needText("file", "out.json"), Type: r.text("type")}
		r.strict()
	}
	s.Progress = readExecProgress(e)
	s.ExitCodes = readExitCodes(e)
	s.CancelSignal = e.text("cancel_signal")
	s.AllowOptions = e.boolean("allow_options")
	e.strict()
	m.Exec = s
	_, problems := execspec.Compile(*s)
	for _, p := range problems {
		if p.Key != "command" && !e.failed(p.Key) { // told already
			e.fail(p.Key, "%s", p.Message)
		}
	}
}

// scalarText is text, or a number or a truth value that YAML made of it.
func scalarText(v any) (string, bool) {
	switch x := v.(type) {
	case string:
		return x, !strings.ContainsRune(x, 0)
	case json.Number, bool:
		return fmt.Sprint(x), true
	}
	return "", false
}

// readExecArgs reads texts, and lists of texts that are optional groups.
func readExecArgs(e *fields) []execspec.Arg {
	v, ok := e.get("args")
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		e.fail("args", "must be a list")
		return nil
	}
	var out []execspec.Arg
	for i, x := range list {
		key := fmt.Sprintf("args[%d]", i)
		if group, ok := x.([]any); ok {
			a := execspec.Arg{Group: []string{}}
			for n, y := range group {
				s, ok := scalarText(y)
				if !ok {
					e.fail(fmt.Sprintf("%s[%d]", key, n), "must be text; put it in quotes")
				}
				a.Group = append(a.Group, s)
			}
			out = append(out, a)
			continue
		}
		s, ok := scalarText(x)
		if !ok { // YAML reads {kwargs.x} without quotes as a map
			e.fail(key, "must be text, or a list of texts that is left out when one of its values is missing; put it in quotes")
		}
		out = append(out, execspec.Arg{Text: s})
	}
	return out
}

// readExecStdin reads none, json, {text: …} or {file: …}.
func readExecStdin(e *fields) execspec.Stdin {
	v, ok := e.get("stdin")
	if !ok {
		return execspec.Stdin{}
	}
	switch x := v.(type) {
	case string:
		if x == "json" || x == "none" {
			return execspec.Stdin{JSON: x == "json"}
		}
	case map[string]any:
		s := e.sub("stdin", x)
		in := execspec.Stdin{Text: s.text("text"), File: s.text("file")}
		s.strict()
		if in.Text == "" && in.File == "" {
			e.fail("stdin", "must have text or file")
		}
		return in
	}
	e.fail("stdin", "must be none, json, {text: \"…\"} or {file: \"…\"}")
	return execspec.Stdin{}
}

func readExecProgress(e *fields) []execspec.Progress {
	v, ok := e.get("progress")
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		e.fail("progress", "must be a list of rules")
		return nil
	}
	var out []execspec.Progress
	for i, x := range list {
		obj, ok := x.(map[string]any)
		if !ok {
			e.fail(fmt.Sprintf("progress[%d]", i), "must be an object with pattern")
			continue
		}
		r := e.sub(fmt.Sprintf("progress[%d]", i), obj)
		total, _ := r.get("total")
		rule := execspec.Progress{From: r.text("from"), Pattern: r.needText("pattern", "(?P<percent>[0-9.]+)%")}
		if total != nil {
			if rule.Total, ok = scalarText(total); !ok {
				r.fail("total", "must be a number or text")
			}
		}
		r.strict()
		out = append(out, rule)
	}
	return out
}

func readExitCodes(e *fields) map[string]string {
	codes, ok := e.object("exit_codes")
	if !ok {
		return nil
	}
	out := map[string]string{}
	for _, code := range slices.Sorted(maps.Keys(codes.obj)) {
		out[code] = codes.text(code)
	}
	return out
}
