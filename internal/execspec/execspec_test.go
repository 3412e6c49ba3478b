package execspec

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func values(t testing.TB, kwargs string) *Values {
	t.Helper()
	v := &Values{
		Args: []any{"first", json.Number("2")}, Config: map[string]any{"voice": "anna"},
		Names: map[string]string{"job": "j1", "dir": "/d", "manifest_dir": "/m"},
	}
	d := json.NewDecoder(strings.NewReader(kwargs))
	d.UseNumber()
	if err := d.Decode(&v.Kwargs); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestTemplate_Text(t *testing.T) {
	t.Parallel()
	v := values(t, `{"s":"a b; $(rm)","n":1.50,"b":true,"o":{"k":["x",{"y":7}]},"nil":null,"big":12345678901234567890}`)
	for template, want := range map[string]string{
		"plain":                      "plain",
		"{kwargs.s}":                 "a b; $(rm)",
		"-r={kwargs.n}/{kwargs.b}":   "-r=1.50/true",
		"{kwargs.big}":               "12345678901234567890",
		"{kwargs.o.k.1.y}":           "7",
		"{kwargs.o.k}":               `["x",{"y":7}]`,
		"{args.0}{args.1}":           "first2",
		"{config.voice}@{job}":       "anna@j1",
		"{dir}/out":                  "/d/out",
		"{{kwargs.s}} }}{{":          "{kwargs.s} }{",
		"{kwargs.missing=dflt}":      "dflt",
		"{kwargs.nil=}x":             "x",
		"{kwargs.missing=a=b,{{}c}}": "a=b,{{c}",
	} {
		p, err := Parse(template)
		if err != nil {
			t.Errorf("%s: %v", template, err)
			continue
		}
		if got, err := p.Text(v); err != nil || got != want {
			t.Errorf("%s: got %q (%v), want %q", template, got, err, want)
		}
	}
}

func TestTemplate_RefusesValues(t *testing.T) {
	t.Parallel()
	v := values(t, `{"nul":"a\u0000b","nil":null,"dash":"-y","list":["a","--x"],"text":"t"}`)
	for template, want := range map[string]struct {
		name    string
		missing bool
	}{
		"{kwargs.nope}":    {"kwargs.nope", true},
		"{kwargs.nil}":     {"kwargs.nil", true},
		"{kwargs.text.x}":  {"kwargs.text.x", true},
		"{args.2}":         {"args.2", true},
		"{args.-1}":        {"args.-1", true},
		"{kwargs.nul}":     {"kwargs.nul", false},
		"{kwargs.dash}":    {"kwargs.dash", false},
		"{kwargs.list...}": {"kwargs.list.1", false},
		"{kwargs.text...}": {"kwargs.text", false},
		"{kwargs.no...}":   {"kwargs.no", true},
		// an empty value before it does not hide the dash
		"{config.none=}{kwargs.dash}": {"kwargs.dash", false},
	} {
		p, err := Parse(template)
		if err != nil {
			t.Fatal(err)
		}
		_, err = CompiledArg{Parts: []*Template{p}}.Expand(v, false)
		var e *ValueError
		if !errors.As(err, &e) || e.Name != want.name || e.Missing != want.missing {
			t.Errorf("%s: got %+v (%v)", template, e, err)
		}
	}
}

func TestParse_Refuses(t *testing.T) {
	t.Parallel()
	for _, template := range []string{
		"{", "}", "a{b", "{}", "{kwargs}", "{kwargs.}", "{kwargs..a}", "{.}", "{shell}", "{env.HOME}", "{dir.x}", "{dir=x}", "{job...}", "{kwargs.a...=x}", "x{kwargs.a...}", "{a}}",
	} {
		if _, err := Parse(template); err == nil {
			t.Errorf("%q was accepted", template)
		}
	}
}

func TestExpand_ArgumentsStayWhatTheyAre(t *testing.T) {
	t.Parallel()
	v := values(t, `{"text":"two words","neg":-3,"dash":"-y","list":["a b","c"],"none":[]}`)
	for _, c := range []struct {
		arg     Arg
		options bool
		want    []string
	}{
		{Arg{Text: "{kwargs.text}"}, false, []string{"two words"}},
		{Arg{Text: "{kwargs.neg}"}, false, []string{"-3"}},
		{Arg{Text: "--x={kwargs.dash}"}, false, []string{"--x=-y"}},
		{Arg{Text: "{kwargs.dash}"}, true, []string{"-y"}},
		{Arg{Text: "{kwargs.list...}"}, false, []string{"a b", "c"}},
		{Arg{Text: "{kwargs.none...}"}, false, nil},
		{Arg{Group: []string{"-s", "{kwargs.text}"}}, false, []string{"-s", "two words"}},
		{Arg{Group: []string{"-s", "{kwargs.nope}", "{kwargs.text}"}}, false, nil},
	} {
		p, problems := Compile(Spec{Command: []string{"/x"}, Args: []Arg{c.arg}})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		got, err := p.Args[0].Expand(v, c.options)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: got %q (%v), want %q", c.arg, got, err, c.want)
		}
	}
}

func TestCompile_NamesEveryProblem(t *testing.T) {
	t.Parallel()
	_, problems := Compile(Spec{
		Args:  []Arg{{Text: "{x}"}, {Group: []string{"-a", "b"}}},
		Stdin: Stdin{JSON: true, Text: "t"}, Stdout: "xml", Result: &Result{Type: "png"}, CancelSignal: "KILL",
		Progress:  []Progress{{Pattern: "("}, {Pattern: "(?P<speed>x)"}, {Pattern: "(?P<done>x)", From: "tty", Total: "{"}},
		ExitCodes: map[string]string{"0": "fatal", "2": "bad"},
	})
	var keys []string
	for _, p := range problems {
		keys = append(keys, p.Key)
	}
	want := []string{"command", "stdout", "args[0]", "args[1]", "stdin", "result.file", "progress[0].pattern", "progress[1].pattern", "progress[1].pattern",
		"progress[2].from", "progress[2].total", "exit_codes.0", "exit_codes.2", "cancel_signal"}
	if !reflect.DeepEqual(keys, want) {
		t.Fatalf("got  %v\nwant %v", keys, want)
	}
	_, problems = Compile(Spec{Command: []string{"x"}, Progress: []Progress{{Pattern: "(?P<done>x)", From: "stdout"}}})
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "which is the result") {
		t.Fatalf("progress from a standard output that is the result: %v", problems)
	}
}

func TestCompile_AResultFileFreesStandardOutput(t *testing.T) {
	t.Parallel()
	p, problems := Compile(Spec{Command: []string{"x"}, Result: &Result{File: "o"}, Progress: []Progress{{Pattern: "(?P<done>x)", From: "stdout"}}})
	if len(problems) > 0 || p.Spec.Stdout != StdoutLog {
		t.Fatal(p.Spec.Stdout, problems)
	}
}

func TestArg_CrossesAsJSON(t *testing.T) {
	t.Parallel()
	want := []Arg{{Text: "[x]"}, {Group: []string{"-a", "{kwargs.b}"}}, {Text: ""}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got []Arg
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%s became %+v (%v)", b, got, err)
	}
}

// FuzzTemplate: text of a job never becomes anything but one argument, with a
// dash at its start only where the template has one.
func FuzzTemplate(f *testing.F) {
	f.Add("{kwargs.x}", "a b")
	f.Add("-f={kwargs.x=d}{{", "-rf /")
	f.Add("{kwargs.x...}", "")
	f.Fuzz(func(t *testing.T, template, text string) {
		p, err := Parse(template)
		if err != nil || !utf8.ValidString(text) {
			return
		}
		v := &Values{Kwargs: map[string]any{"x": text, "l": []any{text, text}}, Names: map[string]string{}}
		out, err := CompiledArg{Parts: []*Template{p}}.Expand(v, false)
		if err != nil {
			return
		}
		if !p.Spread() && len(out) != 1 {
			t.Fatalf("%q with %q gave %q", template, text, out)
		}
		for _, a := range out {
			if strings.ContainsRune(a, 0) && !strings.ContainsRune(template, 0) {
				t.Fatalf("%q with %q gave a NUL", template, text)
			}
			if strings.HasPrefix(a, "-") && strings.HasPrefix(text, "-") && strings.HasPrefix(template, "{kwargs.x") && !strings.Contains(template, "=") {
				t.Fatalf("%q with %q gave an option: %q", template, text, a)
			}
		}
	})
}
