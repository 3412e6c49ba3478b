package execspec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Template is text with placeholders: {kwargs.name}, {kwargs.a.b.0},
// {kwargs.name=default}, {kwargs.list...}, and the names of Names. {{ and }} are
// braces.
type Template struct{ parts []part }

type part struct {
	text string
	ref  *ref
}

// ref is one placeholder.
type ref struct {
	path   []string
	def    *string // used when the value is missing
	spread bool    // one argument per element of a list
}

func (r *ref) String() string { return strings.Join(r.path, ".") }

// Roots of paths into a job's values.
var roots = []string{"kwargs", "args", "config"}

// Names are the placeholders that are no path.
var Names = []string{"job", "attempt", "dir", "data", "models", "cache", "manifest_dir"}

// Parse reads a template.
func Parse(text string) (*Template, error) {
	t := &Template{}
	for text != "" {
		i := strings.IndexAny(text, "{}")
		if i < 0 {
			t.literal(text)
			break
		}
		t.literal(text[:i])
		if strings.HasPrefix(text[i:], "{{") || strings.HasPrefix(text[i:], "}}") {
			t.literal(text[i : i+1])
			text = text[i+2:]
			continue
		}
		end := strings.IndexByte(text[i:], '}')
		if text[i] == '}' || end < 0 {
			return nil, fmt.Errorf("has a single brace at %q; write {{ or }} for a brace", text[i:])
		}
		r, err := parseRef(text[i+1 : i+end])
		if err != nil {
			return nil, err
		}
		t.parts = append(t.parts, part{ref: r})
		text = text[i+end+1:]
	}
	if t.Spread() && len(t.parts) != 1 {
		return nil, fmt.Errorf("has text around a list; {…...} must stand alone")
	}
	return t, nil
}

func (t *Template) literal(s string) {
	if n := len(t.parts); n > 0 && t.parts[n-1].ref == nil {
		t.parts[n-1].text += s
	} else if s != "" {
		t.parts = append(t.parts, part{text: s})
	}
}

func parseRef(s string) (*ref, error) {
	r := &ref{}
	name, def, hasDefault := strings.Cut(s, "=")
	if hasDefault {
		r.def = &def
	}
	if n, ok := strings.CutSuffix(name, "..."); ok {
		r.spread, name = true, n
	}
	r.path = strings.Split(name, ".")
	if slices.Contains(r.path, "") {
		return nil, fmt.Errorf("has the placeholder {%s}, which names nothing", s)
	}
	switch root := r.path[0]; {
	case slices.Contains(roots, root) && len(r.path) == 1:
		return nil, fmt.Errorf("has the placeholder {%s}; say which: {%s.name}", s, root)
	case slices.Contains(roots, root):
	case slices.Contains(Names, root) && len(r.path) == 1 && !hasDefault && !r.spread:
	default:
		return nil, fmt.Errorf("has the placeholder {%s}; known are {kwargs.…}, {args.…}, {config.…}, {%s}", s, strings.Join(Names, "}, {"))
	}
	if r.spread && hasDefault {
		return nil, fmt.Errorf("has the placeholder {%s}: a list has no default, it may be empty", s)
	}
	return r, nil
}

// Spread reports whether the template gives a list.
func (t *Template) Spread() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.ref != nil && p.ref.spread })
}

// Needs reports whether a value that the template takes may be missing.
func (t *Template) Needs() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.ref != nil && p.ref.def == nil && slices.Contains(roots, p.ref.path[0]) })
}

// reads reports whether a placeholder begins with one of these roots.
func (t *Template) reads(roots ...string) bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.ref != nil && slices.Contains(roots, p.ref.path[0]) })
}

// Values are what a job's placeholders stand for. Numbers are json.Number.
type Values struct {
	Kwargs map[string]any
	Args   []any
	Config map[string]any
	Names  map[string]string
}

// ValueError says which value of a job cannot be used.
type ValueError struct {
	Name    string // kwargs.audio
	Message string
	Missing bool
}

func (e *ValueError) Error() string { return e.Name + " " + e.Message }

// Text expands a template into one text.
func (t *Template) Text(v *Values) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.ref == nil {
			b.WriteString(p.text)
			continue
		}
		s, _, err := p.ref.text(v)
		if err != nil {
			return "", err
		}
		b.WriteString(s)
	}
	return b.String(), nil
}

// Expand gives the arguments of one CompiledArg. options lets text of the job
// that begins with a dash begin an argument.
func (a CompiledArg) Expand(v *Values, options bool) ([]string, error) {
	var out []string
	for _, t := range a.Parts {
		list, err := t.arguments(v, options)
		if e, ok := err.(*ValueError); ok && e.Missing && a.Optional {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

func (t *Template) arguments(v *Values, options bool) ([]string, error) {
	if !t.Spread() {
		s, err := t.Text(v)
		if err == nil && !options {
			err = t.guard(v)
		}
		return []string{s}, err
	}
	r := t.parts[0].ref
	value, ok := v.lookup(r.path)
	if !ok {
		return nil, r.missing()
	}
	list, isList := value.([]any)
	if !isList {
		return nil, &ValueError{Name: r.String(), Message: "must be a list"}
	}
	var out []string
	for i, x := range list {
		name := fmt.Sprintf("%s.%d", r, i)
		s, isText, err := write(name, x)
		if err == nil && isText && !options {
			err = guard(name, s)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// guard refuses an argument that a value of the job makes look like an option.
func (t *Template) guard(v *Values) error {
	for _, p := range t.parts {
		if p.ref == nil {
			return nil // text of the manifest begins it
		}
		s, isText, err := p.ref.text(v)
		if err != nil || s != "" && !isText {
			return err
		}
		if s != "" {
			return guard(p.ref.String(), s)
		}
	}
	return nil
}

func guard(name, s string) error {
	if strings.HasPrefix(s, "-") {
		return &ValueError{Name: name, Message: fmt.Sprintf("begins with a dash (%.40q): the program would take it for an option; put ./ before a path", s)}
	}
	return nil
}

func (r *ref) missing() error {
	return &ValueError{Name: r.String(), Message: "is missing", Missing: true}
}

// text is the value of a placeholder; isText: it came as a string of the job.
func (r *ref) text(v *Values) (s string, isText bool, err error) {
	if !slices.Contains(roots, r.path[0]) {
		return v.Names[r.path[0]], false, nil
	}
	value, ok := v.lookup(r.path)
	if !ok || value == nil {
		if r.def == nil {
			return "", false, r.missing()
		}
		return *r.def, false, nil
	}
	return write(r.String(), value)
}

// write turns a JSON value into text: strings as they are, all else as JSON.
func write(name string, value any) (s string, isText bool, err error) {
	switch x := value.(type) {
	case string:
		if strings.ContainsRune(x, 0) {
			return "", true, &ValueError{Name: name, Message: "holds a NUL character"}
		}
		return x, true, nil
	case json.Number:
		return x.String(), false, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return "", false, &ValueError{Name: name, Message: err.Error()}
	}
	return strings.TrimSuffix(b.String(), "\n"), false, nil
}

func (v *Values) lookup(path []string) (any, bool) {
	var at any
	switch path[0] {
	case "kwargs":
		at = v.Kwargs
	case "args":
		at = v.Args
	case "config":
		at = v.Config
	}
	for _, key := range path[1:] {
		switch x := at.(type) {
		case map[string]any:
			next, ok := x[key]
			if !ok {
				return nil, false
			}
			at = next
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(x) {
				return nil, false
			}
			at = x[i]
		default:
			return nil, false
		}
	}
	return at, true
}
