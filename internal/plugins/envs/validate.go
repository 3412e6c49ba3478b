package envs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/internal/plugins"
)

// Validation is what was found about one file.
type Validation struct {
	Path     string    `json:"path"`
	Kind     string    `json:"kind"` // "manifest" or "plugins.yaml"
	Name     string    `json:"name,omitempty"`
	Problems []Problem `json:"problems"`
	Warnings []Problem `json:"warnings"`
}

// Validate checks a manifest or a plugins.yaml, or what a directory holds of
// them, without running anything. The error is about reading the file.
func Validate(path string) (Validation, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if path, err = fileIn(path); err != nil {
			return Validation{}, err
		}
	}
	content, err := readBounded(path)
	if err != nil {
		return Validation{}, err
	}
	v := Validation{Path: path, Kind: "manifest", Problems: []Problem{}, Warnings: []Problem{}}
	tree, yerr := parseYAML(content) // JSON is YAML, too
	if yerr == nil && isFile(tree) {
		v.Kind = "plugins.yaml"
		_, err := ReadFile(path)
		var bad *FileError
		if errors.As(err, &bad) {
			v.Problems = bad.Problems
			return v, nil
		}
		return v, err
	}
	m, err := plugins.ParseManifest(path, content)
	v.Name = m.Name
	var bad *plugins.ManifestError
	if errors.As(err, &bad) {
		for _, p := range bad.Problems {
			v.Problems = append(v.Problems, Problem{lineOf(tree, p.Key), p.Key, p.Message})
		}
		slices.SortStableFunc(v.Problems, func(a, b Problem) int { return a.Line - b.Line })
		return v, nil
	}
	if err != nil {
		v.Problems = append(v.Problems, Problem{Message: err.Error()})
		return v, nil
	}
	v.look(m, tree)
	return v, nil
}

func isFile(tree *yaml.Node) bool {
	if tree == nil || tree.Kind != yaml.MappingNode {
		return false
	}
	for i := 0; i < len(tree.Content); i += 2 {
		if k := tree.Content[i].Value; k == DialectPlugins || k == DialectCapabilities {
			return true
		}
	}
	return false
}

// look finds what a manifest that can be read will stumble over.
func (v *Validation) look(m *plugins.Manifest, tree *yaml.Node) {
	warn := func(key, format string, args ...any) {
		v.Warnings = append(v.Warnings, Problem{lineOf(tree, key), key, fmt.Sprintf(format, args...)})
	}
	for _, w := range m.Warnings {
		v.Warnings = append(v.Warnings, Problem{Message: w})
	}
	for _, dir := range m.CodeDirs {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			v.Problems = append(v.Problems, Problem{lineOf(tree, "path"), "path", "names " + dir + ", which is no directory"})
		}
	}
	if m.Module != "" && len(m.CodeDirs) > 0 && len(m.EnvSpec) == 0 && !moduleIn(m.CodeDirs, m.Module) {
		warn("module", "is %q, which is not in path; the plugin starts only when its environment has it", m.Module)
	}
	if full, err := plugins.MergeDefaults(*m, nil); err != nil {
		warn("config_schema", "%v", err)
	} else if issues, err := plugins.CheckConfig(*m, full); err == nil {
		for _, i := range issues {
			key := "config_schema.properties" + strings.ReplaceAll(i.Pointer, "/", ".") + ".default"
			v.Problems = append(v.Problems, Problem{lineOf(tree, key), key, "breaks the schema's own rule: " + i.Message})
		}
	}
	if len(m.EnvSpec) > 0 {
		var e Entry
		var problems []Problem
		o := &object{keys: map[string]*yaml.Node{}, lines: map[string]int{}, problems: &problems}
		e.useManifest(o, "env", v.Path)
		for _, p := range problems {
			v.Problems = append(v.Problems, Problem{lineOf(tree, "env"), "env", strings.TrimPrefix(p.Message, v.Path+": ")})
		}
	}
}

func moduleIn(dirs []string, module string) bool {
	rel := filepath.Join(strings.Split(module, ".")...)
	return slices.ContainsFunc(dirs, func(dir string) bool {
		for _, p := range []string{rel + ".py", filepath.Join(rel, "__init__.py")} {
			if _, err := os.Stat(filepath.Join(dir, p)); err == nil {
				return true
			}
		}
		return false
	})
}

// lineOf finds the line of a dotted key like secrets[0].name, or of the nearest
// thing around it that is there.
func lineOf(tree *yaml.Node, key string) int {
	if tree == nil {
		return 0
	}
	line := 0
	for at := tree; key != "" && at != nil; {
		part, rest := key, ""
		if i := strings.IndexAny(key[1:], ".["); i >= 0 {
			part, rest = key[:i+1], strings.TrimPrefix(key[i+1:], ".")
		}
		next, found := child(at, part)
		if found == 0 {
			break
		}
		line, at, key = found, next, rest
	}
	return line
}

// child is the value of one step of a key, and the line where it stands.
func child(n *yaml.Node, part string) (*yaml.Node, int) {
	n = follow(n)
	if n == nil {
		return nil, 0
	}
	if index, ok := strings.CutPrefix(part, "["); ok {
		i, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
		if err != nil || n.Kind != yaml.SequenceNode || i >= len(n.Content) {
			return nil, 0
		}
		return n.Content[i], n.Content[i].Line
	}
	if n.Kind != yaml.MappingNode {
		return nil, 0
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == part {
			return n.Content[i+1], n.Content[i].Line
		}
	}
	return nil, 0
}
