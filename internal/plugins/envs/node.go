package envs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/internal/suggest"
)

// Problem is one thing wrong with a file. Line is 0 when it concerns the whole.
type Problem struct {
	Line    int    `json:"line,omitempty"`
	Key     string `json:"key,omitempty"`
	Message string `json:"message"`
}

// FileError holds everything that is wrong with a file.
type FileError struct {
	Path     string
	Problems []Problem
}

func (e *FileError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		where := e.Path
		if p.Line > 0 {
			where = fmt.Sprintf("%s:%d", e.Path, p.Line)
		}
		lines[i] = where + ": " + strings.TrimSpace(p.Key+" "+p.Message)
	}
	return strings.Join(lines, "\n")
}

// object reads one mapping of a YAML file and gathers problems with their
// lines. A null counts as absent.
type object struct {
	keys     map[string]*yaml.Node
	lines    map[string]int // of the keys
	line     int
	prefix   string
	seen     []string
	problems *[]Problem
}

// parseYAML returns the one document of content.
func parseYAML(content []byte) (*yaml.Node, error) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	if err := d.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("is empty")
		}
		return nil, fmt.Errorf("is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more than one document; keep one")
	}
	return follow(doc.Content[0]), nil
}

// follow resolves an alias, of an alias, and so on; nil where it goes in circles.
func follow(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// openObject opens node as a mapping; what is none is a problem.
func openObject(node *yaml.Node, prefix string, problems *[]Problem) (*object, bool) {
	o := &object{keys: map[string]*yaml.Node{}, lines: map[string]int{}, prefix: prefix, problems: problems}
	if node == nil || node.Kind != yaml.MappingNode {
		if node != nil {
			o.line = node.Line
		}
		*problems = append(*problems, Problem{o.line, strings.TrimSuffix(prefix, "."), "must be an object with keys"})
		return o, false
	}
	o.line = node.Line
	for i := 0; i+1 < len(node.Content); i += 2 {
		k := node.Content[i]
		if _, dup := o.keys[k.Value]; dup {
			o.fail(k.Value, "stands twice; keep one")
			continue
		}
		o.keys[k.Value], o.lines[k.Value] = follow(node.Content[i+1]), k.Line
	}
	return o, true
}

func (o *object) fail(key, format string, args ...any) {
	line := o.lines[key]
	if line == 0 {
		line = o.line
	}
	o.failAt(line, key, format, args...)
}

func (o *object) failAt(line int, key, format string, args ...any) {
	*o.problems = append(*o.problems, Problem{line, o.prefix + key, fmt.Sprintf(format, args...)})
}

func (o *object) get(key string) (*yaml.Node, bool) {
	o.seen = append(o.seen, key)
	n, ok := o.keys[key]
	if !ok || n == nil || n.Tag == "!!null" {
		return nil, false
	}
	return n, true
}

// text is a string; a number counts as what was written, so that a version
// like 3.10 need not be put in quotes.
func (o *object) text(key string) string {
	n, ok := o.get(key)
	if !ok {
		return ""
	}
	return o.scalar(n, key)
}

func (o *object) scalar(n *yaml.Node, key string) string {
	n = follow(n)
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag != "!!str" && n.Tag != "!!int" && n.Tag != "!!float" {
		o.fail(key, "must be text; put it in quotes")
		return ""
	}
	if strings.ContainsFunc(n.Value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		o.failAt(n.Line, key, "holds a control character; delete it")
		return ""
	}
	return n.Value
}

// texts is a list of texts, or one text.
func (o *object) texts(key string) []string {
	n, ok := o.get(key)
	if !ok {
		return nil
	}
	if n.Kind == yaml.ScalarNode {
		if s := o.scalar(n, key); s != "" {
			return []string{s}
		}
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		o.fail(key, "must be a list of texts")
		return nil
	}
	out := make([]string, 0, len(n.Content))
	for i, x := range n.Content {
		if s := o.scalar(x, fmt.Sprintf("%s[%d]", key, i)); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// list is a list of objects.
func (o *object) list(key string) []*object {
	n, ok := o.get(key)
	if !ok {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		o.fail(key, "must be a list")
		return nil
	}
	var out []*object
	for i, x := range n.Content {
		if e, ok := openObject(follow(x), fmt.Sprintf("%s%s[%d].", o.prefix, key, i), o.problems); ok {
			out = append(out, e)
		}
	}
	return out
}

func (o *object) oneOf(key string, allowed ...string) string {
	s := o.text(key)
	if s != "" && !slices.Contains(allowed, s) {
		o.fail(key, "is %q; it must be one of %s%s", s, strings.Join(allowed, ", "), suggest.DidYouMean(s, allowed))
	}
	return s
}

// strict refuses every key that was not asked for.
func (o *object) strict() {
	var unknown []string
	for k := range o.keys {
		if !slices.Contains(o.seen, k) {
			unknown = append(unknown, k)
		}
	}
	slices.Sort(unknown)
	for _, k := range unknown {
		o.fail(k, "is no known key%s", suggest.DidYouMean(k, o.seen))
	}
}
