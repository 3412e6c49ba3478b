package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/internal/suggest"
)

// strictYAML is a koanf.Parser that holds the file to the schema and notes the
// line of every value. Problems go to the loader, so that all are told at once;
// its own error is only for text that is no YAML.
type strictYAML struct {
	loader *loader
	path   string
}

func (p *strictYAML) Unmarshal(b []byte) (map[string]any, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	out := map[string]any{}
	if len(doc.Content) == 0 { // an empty file, or comments alone
		return out, nil
	}
	p.section(out, doc.Content[0], "")
	return out, nil
}

// Marshal is part of koanf.Parser; nothing here writes YAML.
func (p *strictYAML) Marshal(map[string]any) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

func (p *strictYAML) origin(n *yaml.Node) string {
	return fmt.Sprintf("%s:%d", filepath.Base(p.path), n.Line)
}

// section reads one mapping. prefix is "" or ends in ".".
func (p *strictYAML) section(out map[string]any, n *yaml.Node, prefix string) {
	name := strings.TrimSuffix(prefix, ".")
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section whose lines are all commented out
	}
	if n.Kind != yaml.MappingNode {
		p.loader.problem(name, p.origin(n), "must hold keys with values, one a line")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key := prefix + k.Value
		if line := seen[k.Value]; line > 0 {
			p.loader.problem(key, p.origin(k), "is given twice, first in line %d; keep one", line)
			continue
		}
		seen[k.Value] = k.Line
		p.entry(out, k, v, prefix, key)
	}
}

func (p *strictYAML) entry(out map[string]any, k, v *yaml.Node, prefix, key string) {
	if strings.Contains(k.Value, ".") { // koanf would take the dot for nesting
		hint := suggest.DidYouMean(key, p.loader.names)
		if p.loader.keys[key].Name != "" {
			hint = ""
		}
		p.loader.problem(key, p.origin(k), "must be written as nested sections, not with dots%s", hint)
		return
	}
	if known, ok := p.loader.keys[key]; ok {
		if value, ok := p.leaf(known, v); ok {
			out[k.Value] = value
			p.loader.origins[key] = p.origin(k)
		}
		return
	}
	siblings := p.children(prefix)
	for _, s := range siblings {
		if s == k.Value { // a section
			sub := map[string]any{}
			p.section(sub, v, key+".")
			out[k.Value] = sub
			return
		}
	}
	hint := suggest.DidYouMean(k.Value, siblings)
	if hint == "" {
		// Perhaps the right key in the wrong section.
		for _, full := range p.loader.names {
			if strings.HasSuffix("."+full, "."+k.Value) {
				hint = fmt.Sprintf(" (did you mean %q? write it as nested sections)", full)
				break
			}
		}
	}
	p.loader.problem(key, p.origin(k), "unknown key%s", hint)
}

// children lists the keys and sections directly below prefix.
func (p *strictYAML) children(prefix string) []string {
	var out []string
	for _, name := range p.loader.names {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			first, _, _ := strings.Cut(rest, ".")
			if len(out) == 0 || out[len(out)-1] != first {
				out = append(out, first)
			}
		}
	}
	return out
}

// leaf converts one value. YAML's own types count: a number is no text, so
// that "on", 0660 or 30 cannot silently become something else.
func (p *strictYAML) leaf(key Key, n *yaml.Node) (any, bool) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	bad := func(format string, args ...any) (any, bool) {
		p.loader.problem(key.Name, p.origin(n), format, args...)
		return nil, false
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return bad("has no value; give one or delete the line")
	}
	if key.Kind() == "a list" {
		if n.Kind != yaml.SequenceNode {
			return bad("must be a list: [a, b] or one \"- item\" a line")
		}
		list := []string{}
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag != "!!str" {
				return bad("every item must be text; put it in quotes")
			}
			list = append(list, item.Value)
		}
		return list, true
	}
	if n.Kind != yaml.ScalarNode {
		return bad("must be one value (%s)", key.Kind())
	}
	want := map[string]string{"a whole number": "!!int", "true or false": "!!bool"}[key.Kind()]
	if want == "" {
		want = "!!str"
	}
	if n.Tag != want {
		if key.Kind() == "a duration" {
			return bad("%s has no unit; write it like 30s, 5m, 12h or 30d", n.Value)
		}
		if want == "!!str" {
			return bad("%s must be text; put it in quotes", n.Value)
		}
		return bad("%q must be %s", n.Value, key.Kind())
	}
	if want == "!!int" {
		var i int // YAML's own spelling: 1_000, 0x10
		if err := n.Decode(&i); err != nil {
			return bad("%s is not a whole number", n.Value)
		}
		return i, true
	}
	v, err := key.parse(n.Value)
	if err != nil {
		return bad("%v", err)
	}
	return v, true
}
