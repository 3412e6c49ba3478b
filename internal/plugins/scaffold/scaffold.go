// Package scaffold writes the beginning of a new plugin: a manifest, a class, a
// sample and a test that all work as they are. It keeps no state. Start with
// New; the files are in template.
package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"github.com/cjmd/cjmd/internal/plugins"
)

//go:embed template
var files embed.FS

// keywords of Python, which name no module.
var keywords = strings.Fields("and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield none true false")

// names are what the templates fill in.
type names struct{ Name, Module, Class string }

// New writes a plugin called name into dir, which must not hold anything yet,
// and returns the files. *plugins.NameError.
func New(name, dir string) ([]string, error) {
	if !plugins.ValidName(name) {
		return nil, &plugins.NameError{Name: name}
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("cannot make plugin %q: %s is not empty", name, dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot make plugin %q: %w", name, err)
	}
	fill := names{Name: name, Module: module(name), Class: class(name)}
	var written []string
	err := fs.WalkDir(files, "template", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel := strings.TrimSuffix(strings.TrimPrefix(path, "template/"), ".tmpl")
		target := filepath.Join(dir, strings.ReplaceAll(rel, "MODULE", fill.Module))
		written = append(written, target)
		return write(path, target, fill)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make plugin %q: %w", name, err)
	}
	return written, nil
}

func write(from, to string, fill names) error {
	text, err := files.ReadFile(from)
	if err != nil {
		return err
	}
	t, err := template.New(from).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, fill); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}

// module makes a module's name that cannot be confused with one of Python's.
func module(name string) string {
	s := strings.Map(func(r rune) rune {
		if r == '-' || r == '.' {
			return '_'
		}
		return unicode.ToLower(r)
	}, name)
	if unicode.IsDigit(rune(s[0])) || slices.Contains(keywords, s) {
		s = "plugin_" + s
	}
	return s + "_plugin"
}

func class(name string) string {
	var b strings.Builder
	up := true
	for _, r := range name {
		switch {
		case r == '-' || r == '.' || r == '_':
			up = true
			continue
		case up:
			r = unicode.ToUpper(r)
		}
		up = false
		b.WriteRune(r)
	}
	s := b.String()
	if s == "" || unicode.IsDigit(rune(s[0])) {
		return "Plugin" + s
	}
	if slices.Contains(keywords, strings.ToLower(s)) {
		return s + "Plugin"
	}
	return s
}
