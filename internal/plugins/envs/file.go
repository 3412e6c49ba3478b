package envs

import (
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/cjmd/cjmd/internal/plugins"
)

// Names of the tools, as plugins.yaml and manifests write them.
const (
	UV         = "uv"
	Venv       = "venv"
	Micromamba = "micromamba"
	Conda      = "conda"
)

var managers = []string{UV, Venv, Micromamba, Conda}

// Dialects of the file: they differ in the top key and in how a class is found.
const (
	DialectPlugins      = "plugins"
	DialectCapabilities = "capabilities"
)

// File is a plugins.yaml (or capabilities.yaml) that was read and is sound.
type File struct {
	Path    string
	Dialect string
	Entries []Entry
}

// Entry is one plugin to install. Paths are absolute.
type Entry struct {
	Name    string // its label; the manifest may name the plugin otherwise
	EnvName string // of its environment
	Line    int

	Manager      string // "" where the machine decides
	Python       string // "3.11", or the absolute path of an interpreter; "" for the default one
	EnvFile      string // environment.yml of the conda family: a path or an address
	Package      *Requirement
	Requirements []Requirement // interface_libs and the libraries of adapters, too
	Interfaces   []Requirement // interface_libs alone, for the host
	ReqFiles     []string      // requirements.txt files
	Lock         string        // file with the exact versions of everything
	Index        string        // package index instead of the configured one

	Manifest *plugins.Manifest // a manifest that exists already; nil: it is written from the code
	Dialect  string
	Module   string // where the package's name does not tell
	Class    string
	Category string
	EnvVars  map[string]string
	Adapters []string // "module:Class"

	source string // the file; set by Plan
}

const maxFileBytes = 1 << 20

// ReadFile reads plugins.yaml, or one manifest as if it were a plugins.yaml
// with this one entry. Errors are *FileError with every problem.
func ReadFile(path string) (*File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if path, err = fileIn(path); err != nil {
			return nil, err
		}
	}
	content, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	f := &File{Path: path}
	var problems []Problem
	if node, err := parseYAML(content); err != nil {
		problems = []Problem{{Message: err.Error()}}
	} else if top, ok := openObject(node, "", &problems); ok {
		f.read(top)
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
		return nil, &FileError{Path: path, Problems: problems}
	}
	return f, nil
}

// fileIn finds what install-all reads in a directory.
func fileIn(dir string) (string, error) {
	names := []string{"plugins.yaml", "plugins.yml", "capabilities.yaml", "capabilities.yml", "manifest.yaml", "manifest.yml", "manifest.json", "plugin.yaml"}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("cannot find a plugins.yaml or a manifest in %s", dir)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read %s: it is no plain file", path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("cannot read %s: it is larger than %d bytes", path, maxFileBytes)
	}
	return content, nil
}

func (f *File) read(top *object) {
	dir := filepath.Dir(f.Path)
	_, isPlugins := top.keys[DialectPlugins]
	_, isCapabilities := top.keys[DialectCapabilities]
	_, isManifest := top.keys["format_version"]
	_, hasName := top.keys["name"]
	switch {
	case isPlugins && isCapabilities:
		top.fail(DialectCapabilities, "stands beside plugins; keep one of them")
		return
	case isPlugins, isCapabilities:
		f.Dialect = DialectPlugins
		if isCapabilities {
			f.Dialect = DialectCapabilities
		}
	case isManifest || hasName:
		f.Dialect = DialectPlugins
		e := Entry{Line: 1, Dialect: f.Dialect}
		if e.useManifest(top, "", f.Path); len(*top.problems) == 0 {
			e.finish(top)
			f.Entries = append(f.Entries, e)
		}
		return
	default:
		top.fail("", "has no key plugins (or capabilities): the list of what is to be installed")
		return
	}
	entries := top.list(f.Dialect)
	if len(entries) == 0 && len(*top.problems) == 0 {
		top.fail(f.Dialect, "is an empty list; add an entry with name and package")
	}
	for _, o := range entries {
		e := readEntry(o, dir, f.Dialect)
		o.strict()
		f.Entries = append(f.Entries, e)
	}
	top.strict()
	f.unique(top)
}

// unique refuses two entries of one name, or on one environment: whichever came
// last would win.
func (f *File) unique(top *object) {
	names, environments := map[string]int{}, map[string]int{}
	for _, e := range f.Entries {
		if line, twice := names[e.Name]; twice && e.Name != "" {
			top.failAt(e.Line, "name", "%q is taken by the entry in line %d; give each its own", e.Name, line)
			continue
		}
		names[e.Name] = e.Line
		if line, twice := environments[e.EnvName]; twice && e.EnvName != "" {
			top.failAt(e.Line, "env_name", "%q is the environment of the entry in line %d; give each its own", e.EnvName, line)
		}
		environments[e.EnvName] = e.Line
	}
}

func readEntry(o *object, dir, dialect string) Entry {
	e := Entry{Line: o.line, Dialect: dialect}
	e.Name = readName(o, "name")
	e.EnvName = readName(o, "env_name")
	e.readTool(o, dir)
	if text := o.text("package"); text != "" {
		if r, err := parseRequirement(text, dir); err != nil {
			o.fail("package", "%v", err)
		} else {
			e.Package = &r
		}
	}
	e.Interfaces = requirements(o, "interface_libs", o.texts("interface_libs"), dir)
	e.Requirements = append(e.Requirements, e.Interfaces...)
	for _, a := range o.list("adapters") {
		if lib := a.text("lib"); lib != "" {
			e.Requirements = append(e.Requirements, requirements(a, "lib", []string{lib}, dir)...)
		}
		impl := a.text("impl")
		if !implSpec.MatchString(impl) {
			a.fail("impl", "is %q; write module:Class", impl)
		}
		e.Adapters = append(e.Adapters, impl)
		a.strict()
	}
	e.Module, e.Class = dotted(o, "module"), dotted(o, "class")
	e.Category = o.text("category")
	e.EnvVars = readVars(o)
	if path := o.text("manifest"); path != "" {
		e.useManifest(o, "manifest", inDir(dir, path))
	}
	e.finish(o)
	return e
}

var (
	implSpec = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$`)
	dotName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)
	varName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	pyNumber = regexp.MustCompile(`^[23](\.[0-9]{1,3}){0,2}$`)
)

func readName(o *object, key string) string {
	name := o.text(key)
	if name != "" && !plugins.ValidName(name) {
		o.fail(key, "is %q; use 1 to 64 of A-Z a-z 0-9 . _ - and no dot at the start", name)
		return ""
	}
	return name
}

func dotted(o *object, key string) string {
	s := o.text(key)
	if s != "" && !dotName.MatchString(s) {
		o.fail(key, "is %q, which is no name of Python", s)
	}
	return s
}

func readVars(o *object) map[string]string {
	n, ok := o.get("env_vars")
	if !ok {
		return nil
	}
	vars, ok := openObject(n, o.prefix+"env_vars.", o.problems)
	if !ok {
		return nil
	}
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(vars.keys)) {
		if !varName.MatchString(k) {
			vars.fail(k, "is no name of an environment variable; use A-Z, 0-9 and _")
			continue
		}
		out[k] = vars.text(k)
	}
	return out
}

// readTool reads what both an entry and the env object of a manifest have.
func (e *Entry) readTool(o *object, dir string) {
	key := "env"
	if _, ok := o.keys["manager"]; ok {
		key = "manager"
	}
	if m := o.oneOf(key, managers...); m != "" {
		e.Manager = m
	}
	for _, key := range []string{"python", "python_version"} {
		v := o.text(key)
		if v == "" {
			continue
		}
		if !pyNumber.MatchString(v) && !filepath.IsAbs(v) {
			o.fail(key, "is %q; write a version like \"3.11\", or the absolute path of an interpreter", v)
		}
		if e.Python != "" && e.Python != v && key == "python_version" {
			o.fail(key, "says %q and python says %q; keep one", v, e.Python)
		}
		e.Python = v
	}
	if v := o.text("env_file"); v != "" {
		if !strings.HasPrefix(v, "https://") && !strings.HasPrefix(v, "http://") {
			v = existing(o, "env_file", inDir(dir, v))
		}
		e.EnvFile = v
	}
	e.readRequirements(o, dir)
	if v := o.text("lock"); v != "" {
		e.Lock = existing(o, "lock", inDir(dir, v))
	}
	if v := o.text("index"); v != "" {
		u, err := url.Parse(v)
		if err != nil || !urlChars.MatchString(v) || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			o.fail("index", "must be an address with https:// or http://")
		}
		e.Index = v
	}
}

// readRequirements reads a list of packages, or the name of a requirements.txt.
func (e *Entry) readRequirements(o *object, dir string) {
	for i, text := range o.texts("requirements") {
		key := fmt.Sprintf("requirements[%d]", i)
		if strings.HasSuffix(text, ".txt") || strings.HasSuffix(text, ".in") {
			e.ReqFiles = append(e.ReqFiles, existing(o, key, inDir(dir, text)))
			continue
		}
		e.Requirements = append(e.Requirements, requirements(o, key, []string{text}, dir)...)
	}
}

func requirements(o *object, key string, texts []string, dir string) []Requirement {
	var out []Requirement
	for _, text := range texts {
		r, err := parseRequirement(text, dir)
		if err != nil {
			o.fail(key, "%v", err)
			continue
		}
		out = append(out, r)
	}
	return out
}

func inDir(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

func existing(o *object, key, path string) string {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		o.fail(key, "names %s, which is no file", path)
	}
	return path
}

// useManifest takes name and env from a manifest; the entry's own words win.
func (e *Entry) useManifest(o *object, key, path string) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if path, err = fileIn(path); err != nil {
			o.fail(key, "names a directory without a manifest")
			return
		}
	}
	m, err := plugins.ReadManifest(path)
	if err != nil {
		o.fail(key, "%v", err)
		return
	}
	e.Manifest = m
	if len(m.EnvSpec) == 0 {
		return
	}
	node, err := parseYAML(m.EnvSpec)
	if err != nil {
		o.fail(key, "env %v", err)
		return
	}
	var problems []Problem
	if spec, ok := openObject(node, "env.", &problems); ok {
		var theirs Entry
		theirs.readTool(spec, filepath.Dir(path))
		spec.strict()
		e.inherit(theirs)
	}
	for _, p := range problems { // lines of the other file would mislead
		o.fail(key, "%s: %s %s", path, p.Key, p.Message)
	}
}

func (e *Entry) inherit(t Entry) {
	or := func(mine *string, theirs string) {
		if *mine == "" {
			*mine = theirs
		}
	}
	or(&e.Manager, t.Manager)
	or(&e.Python, t.Python)
	or(&e.EnvFile, t.EnvFile)
	or(&e.Lock, t.Lock)
	or(&e.Index, t.Index)
	if len(e.Requirements) == 0 && len(e.ReqFiles) == 0 {
		e.Requirements, e.ReqFiles = t.Requirements, t.ReqFiles
	}
}

// finish fills in names and refuses what cannot work.
func (e *Entry) finish(o *object) {
	if e.Manifest != nil {
		if e.Name == "" {
			e.Name = e.Manifest.Name
		}
		if e.EnvName == "" {
			e.EnvName = e.Manifest.Name
		}
	}
	if e.EnvName == "" {
		e.EnvName = e.Name
	}
	if e.Name == "" {
		if !slices.ContainsFunc(*o.problems, func(p Problem) bool { return p.Key == o.prefix+"name" }) {
			o.fail("name", "is missing; add it, like \"whisper\"")
		}
	}
	if e.Package == nil && e.Manifest == nil && !slices.ContainsFunc(*o.problems, func(p Problem) bool {
		return p.Key == o.prefix+"package" || p.Key == o.prefix+"manifest"
	}) {
		o.fail("package", "is missing; add it, like \"my-plugin==1.0\", or manifest with the path of one")
	}
	if e.EnvFile != "" && e.Manager != "" && e.Manager != Conda && e.Manager != Micromamba {
		o.fail("env_file", "is for conda and micromamba; this entry says %s", e.Manager)
	}
}
