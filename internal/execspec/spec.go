// Package execspec is the part of a manifest that makes a program a plugin
// (runtime exec): what is run for a job, what it reads, where its result is, and
// how its progress and its exit code are understood. Pure: it parses and expands
// and runs nothing. Start with Spec, then Compile; template.go has placeholders.
package execspec

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What standard output is.
const (
	StdoutJSON   = "json"   // the result
	StdoutText   = "text"   // the result, as a string
	StdoutNDJSON = "ndjson" // each line is a chunk
	StdoutLines  = "lines"  // each line is a chunk, a string
	StdoutLog    = "log"    // for people
)

// What the result file is.
const (
	ResultJSON = "json"
	ResultText = "text"
	ResultPath = "path" // the result is where it is, not what is in it
)

// Spec is what a worker is told. The zero value of a field means its default.
type Spec struct {
	Name    string   `json:"name"` // of the plugin
	Version string   `json:"version,omitempty"`
	Here    string   `json:"here,omitempty"` // {manifest_dir}
	Command []string `json:"command"`        // the program, absolute, and arguments that are always there

	Args         []Arg             `json:"args,omitempty"`
	Stdin        Stdin             `json:"stdin,omitzero"`
	Stdout       string            `json:"stdout,omitempty"` // default json
	Result       *Result           `json:"result,omitempty"` // default: standard output
	Progress     []Progress        `json:"progress,omitempty"`
	ExitCodes    map[string]string `json:"exit_codes,omitempty"` // code → category of the error
	CancelSignal string            `json:"cancel_signal,omitempty"`
	// AllowOptions lets text of a job that begins with a dash begin an argument,
	// where the program may take it for an option.
	AllowOptions bool `json:"allow_options,omitempty"`
}

// Arg is one argument, or a group that is left out as a whole when a value that
// it needs is missing.
type Arg struct {
	Text  string
	Group []string
}

// MarshalJSON writes text or a list.
func (a Arg) MarshalJSON() ([]byte, error) {
	if a.Group != nil {
		return json.Marshal(a.Group)
	}
	return json.Marshal(a.Text)
}

// UnmarshalJSON reads text or a list.
func (a *Arg) UnmarshalJSON(b []byte) error {
	if strings.HasPrefix(strings.TrimSpace(string(b)), "[") {
		return json.Unmarshal(b, &a.Group)
	}
	return json.Unmarshal(b, &a.Text)
}

// Stdin is what the program reads: nothing unless one is set.
type Stdin struct {
	JSON bool   `json:"json,omitempty"` // {"args": […], "kwargs": {…}}
	Text string `json:"text,omitempty"` // a template
	File string `json:"file,omitempty"` // a template: the path of a file
}

// Result is a file that the program leaves in the job's directory.
type Result struct {
	File string `json:"file"` // a template
	Type string `json:"type,omitempty"`
}

// Progress is one way to read progress from lines.
type Progress struct {
	From    string `json:"from,omitempty"` // stderr (default) or stdout
	Pattern string `json:"pattern"`
	Total   string `json:"total,omitempty"` // a template: what done counts towards
}

// Groups that a progress pattern may have.
var progressGroups = []string{"fraction", "percent", "done", "total", "message"}

// Categories that an exit code may mean.
var categories = []string{"user_input", "transient", "resource", "fatal", "timeout", "oom"}

// Problem is one thing that is wrong with a Spec. Key is its place ("args[2]").
type Problem struct{ Key, Message string }

// Program is a Spec whose templates and patterns were read.
type Program struct {
	Spec     Spec
	Args     []CompiledArg
	Stdin    *Template // text or file; nil otherwise
	Result   *Template
	Progress []Rule
	Exits    map[int]string
	// ReadsJob: some template takes values of the job. Otherwise its arguments,
	// which may be large, need not be parsed.
	ReadsJob bool
}

// CompiledArg is one argument, or an optional group of them.
type CompiledArg struct {
	Parts    []*Template
	Optional bool
}

// Rule is a compiled Progress.
type Rule struct {
	Stdout  bool
	Pattern *regexp.Regexp
	Total   *Template
}

// Compile checks a Spec. It returns every problem.
func Compile(s Spec) (*Program, []Problem) {
	c := compiler{p: &Program{Spec: s, Exits: map[int]string{}}}
	if len(s.Command) == 0 {
		c.fail("command", "is missing")
	}
	if c.p.Spec.Stdout == "" {
		c.p.Spec.Stdout = StdoutJSON
	}
	if !slices.Contains([]string{StdoutJSON, StdoutText, StdoutNDJSON, StdoutLines, StdoutLog}, c.p.Spec.Stdout) {
		c.fail("stdout", "is %q; it must be json, text, ndjson, lines or log", s.Stdout)
	}
	for i, a := range s.Args {
		c.arg(fmt.Sprintf("args[%d]", i), a)
	}
	c.stdin(s.Stdin)
	if s.Result != nil {
		c.result(*s.Result)
	}
	for i, r := range s.Progress {
		c.rule(fmt.Sprintf("progress[%d].", i), r)
	}
	for _, code := range slices.Sorted(maps.Keys(s.ExitCodes)) {
		n, err := strconv.Atoi(code)
		if err != nil || n < 1 || n > 255 {
			c.fail("exit_codes."+code, "is no exit code; use 1 to 255")
		}
		if cat := s.ExitCodes[code]; !slices.Contains(categories, cat) {
			c.fail("exit_codes."+code, "is %q; it must be one of %s", cat, strings.Join(categories, ", "))
		}
		c.p.Exits[n] = s.ExitCodes[code]
	}
	if !slices.Contains([]string{"", "INT", "TERM"}, s.CancelSignal) {
		c.fail("cancel_signal", "is %q; it must be INT or TERM", s.CancelSignal)
	}
	return c.p, c.problems
}

type compiler struct {
	p        *Program
	problems []Problem
}

func (c *compiler) fail(key, format string, args ...any) {
	c.problems = append(c.problems, Problem{key, fmt.Sprintf(format, args...)})
}

func (c *compiler) template(key, text string) *Template {
	t, err := Parse(text)
	if err != nil {
		c.fail(key, "%v", err)
		return &Template{}
	}
	c.p.ReadsJob = c.p.ReadsJob || t.reads("kwargs", "args")
	return t
}

// scalar is a template that gives one text.
func (c *compiler) scalar(key, text string) *Template {
	t := c.template(key, text)
	if t.Spread() {
		c.fail(key, "gives a list (...); that is for args only")
	}
	return t
}

func (c *compiler) arg(key string, a Arg) {
	if a.Group == nil {
		c.p.Args = append(c.p.Args, CompiledArg{Parts: []*Template{c.template(key, a.Text)}})
		return
	}
	out := CompiledArg{Optional: true}
	for i, text := range a.Group {
		out.Parts = append(out.Parts, c.template(fmt.Sprintf("%s[%d]", key, i), text))
	}
	if !slices.ContainsFunc(out.Parts, (*Template).Needs) {
		c.fail(key, "is a group without a value that may be missing: write its arguments without the list")
	}
	c.p.Args = append(c.p.Args, out)
}

func (c *compiler) stdin(s Stdin) {
	set := 0
	for _, on := range []bool{s.JSON, s.Text != "", s.File != ""} {
		if on {
			set++
		}
	}
	switch {
	case set > 1:
		c.fail("stdin", "must be one of none, json, {text: …} and {file: …}")
	case s.Text != "":
		c.p.Stdin = c.scalar("stdin.text", s.Text)
	case s.File != "":
		c.p.Stdin = c.scalar("stdin.file", s.File)
	}
}

func (c *compiler) result(r Result) {
	if r.File == "" {
		c.fail("result.file", "is missing; name the file that the program writes")
		return
	}
	c.p.Result = c.scalar("result.file", r.File)
	if !slices.Contains([]string{"", ResultJSON, ResultText, ResultPath}, r.Type) {
		c.fail("result.type", "is %q; it must be json, text or path", r.Type)
	}
	if s := c.p.Spec.Stdout; c.p.Spec.Stdout != "" && (s == StdoutJSON || s == StdoutText) {
		c.p.Spec.Stdout = StdoutLog // the result is in the file: what is printed is for people
	}
}

func (c *compiler) rule(key string, r Progress) {
	if !slices.Contains([]string{"", "stdout", "stderr"}, r.From) {
		c.fail(key+"from", "is %q; it must be stdout or stderr", r.From)
	}
	if s := c.p.Spec.Stdout; r.From == "stdout" && (s == StdoutJSON || s == StdoutText) {
		c.fail(key+"from", "is stdout, which is the result; set stdout to log, ndjson or lines")
	}
	re, err := regexp.Compile(r.Pattern)
	if err != nil {
		c.fail(key+"pattern", "is no regular expression: %v", err)
		return
	}
	known := 0
	for _, name := range re.SubexpNames()[1:] {
		if slices.Contains(progressGroups, name) {
			known++
		} else if name != "" {
			c.fail(key+"pattern", "has the group %q; known are %s", name, strings.Join(progressGroups, ", "))
		}
	}
	if known == 0 {
		c.fail(key+"pattern", "has none of the groups %s; name what it finds, like (?P<percent>[0-9.]+)", strings.Join(progressGroups, ", "))
	}
	out := Rule{Stdout: r.From == "stdout", Pattern: re}
	if r.Total != "" {
		out.Total = c.scalar(key+"total", r.Total)
	}
	c.p.Progress = append(c.p.Progress, out)
}
