package envs

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/cjmd/cjmd/internal/plugins"
)

//go:embed introspect.py
var introspectPy []byte

// introspectTimeout bounds the import of what was installed: large frameworks
// take most of a minute from a cold disk.
const introspectTimeout = 5 * time.Minute

// answer is what introspect.py found; its comments say where.
type answer struct {
	Error        string          `json:"error"`
	Warnings     []string        `json:"warnings"`
	Python       string          `json:"python"`
	Module       string          `json:"module"`
	Class        string          `json:"class"`
	Name         string          `json:"name"`
	Version      string          `json:"version"`
	Summary      string          `json:"summary"`
	Ecosystem    bool            `json:"ecosystem"`
	Schema       json.RawMessage `json:"schema"`
	SchemaHash   string          `json:"schema_hash"`
	Metadata     json.RawMessage `json:"metadata"`
	Distribution *struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		Author  string `json:"author"`
	} `json:"distribution"`
}

// introspect asks the code in the environment of python what it is.
func (in *Installer) introspect(ctx context.Context, s *steps, e Entry, python string) (answer, error) {
	var a answer
	dir, err := os.MkdirTemp("", "cjm-introspect-*")
	if err != nil {
		return a, fmt.Errorf("cannot ask what was installed: %w", err)
	}
	defer os.RemoveAll(dir)
	question := map[string]any{"dialect": e.Dialect, "module": e.Module, "class": e.Class, "package": ""}
	if e.Package != nil {
		question["package"] = e.Package.moduleName()
	}
	if m := e.Manifest; m != nil {
		question["module"], question["class"], question["code_dirs"] = m.Module, m.Class, m.CodeDirs
	}
	script, ask, reply := filepath.Join(dir, "introspect.py"), filepath.Join(dir, "question.json"), filepath.Join(dir, "answer.json")
	b, err := json.Marshal(question)
	if err == nil {
		err = errors.Join(os.WriteFile(script, introspectPy, 0o644), os.WriteFile(ask, b, 0o600))
	}
	if err != nil {
		return a, fmt.Errorf("cannot ask what was installed: %w", err)
	}
	bounded, cancel := context.WithTimeoutCause(ctx, introspectTimeout, fmt.Errorf("cannot ask what was installed: no answer within %s", introspectTimeout))
	defer cancel()
	at := *s
	at.dir = dir // plugins write beside themselves what they should not
	// What is imported here is compiled here: a worker that may not write into its
	// environment would do it at each start.
	var more []string
	if in.o.Runtime != "" { // plugins may import the runtime's names
		more = append(more, "PYTHONPATH="+in.o.Runtime)
	}
	for _, k := range sortedKeys(e.EnvVars) {
		more = append(more, k+"="+e.EnvVars[k])
	}
	if err := at.run(bounded, "ask what was installed", []string{python, script, ask, reply}, more...); err != nil {
		return a, err
	}
	b, err = os.ReadFile(reply)
	if errors.Is(err, fs.ErrNotExist) {
		return a, errors.New("cannot ask what was installed: its code ended Python before the answer")
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		return a, fmt.Errorf("cannot understand what was installed: %w", err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("cannot use what was installed: %s", a.Error)
	}
	return a, nil
}

// written is a manifest to be stored.
type written struct {
	name    string
	content []byte
}

// manifestFor makes the manifest of what was installed: the given one with its
// paths made absolute, or a new one from what the code said. dir is the
// environment, "" when the plugin needs none.
func (in *Installer) manifestFor(e Entry, dir string, rec plugins.EnvRecord, a answer) (written, error) {
	top := map[string]any{}
	if e.Manifest != nil {
		if err := unmarshalNumbers(e.Manifest.Raw, &top); err != nil {
			return written{}, fmt.Errorf("cannot read %s: %w", e.Manifest.Path, err)
		}
		adopt(top, *e.Manifest, dir)
	} else if err := compose(top, e, a); err != nil {
		return written{}, err
	}
	format, _ := top["format_version"].(string)
	if e.Manifest == nil || e.Manifest.Format == "v3" {
		format = "3"
		top["format_version"] = format
	}
	if e.Category != "" {
		top["category"] = e.Category
	}
	mergeEnv(top, e.EnvVars)
	if len(e.Adapters) > 0 {
		top["adapters"] = e.Adapters
	}
	install, _ := top["install"].(map[string]any)
	if install == nil {
		install = map[string]any{}
	}
	install["installed_at"] = in.o.Now().UTC().Format(time.RFC3339)
	install["installer_version"] = "cjm-ctl " + in.o.Version
	install["source"], install["entry"], install["env"], install["inputs_hash"] = e.source, e.Name, e.EnvName, e.manifestHash()
	if dir != "" {
		python := pythonIn(dir)
		if format == "3" || e.Manifest != nil && e.Manifest.Format == "v1" {
			top["python_path"] = python
		} else {
			install["python_path"] = python
		}
		install["manager"], install["python"], install["lock_hash"] = rec.Manager, rec.Python, rec.LockHash
	}
	if e.Package != nil {
		install["package_source"] = e.Package.Text
	}
	if len(a.Metadata) > 0 { // every fact stays, also those that no format of ours has
		install["metadata"] = withoutKey(a.Metadata, "config_schema")
	}
	top["install"] = install
	if err := addDrift(top, e); err != nil {
		return written{}, err
	}
	return checkWritten(top)
}

// adopt makes the relative paths of an existing manifest absolute: the copy
// lies elsewhere. A program that the environment brings is taken from there.
func adopt(top map[string]any, m plugins.Manifest, dir string) {
	if exec, ok := top["exec"]; ok {
		here := strings.NewReplacer("{", "{{", "}", "}}").Replace(filepath.Dir(m.Path))
		top["exec"] = replaceIn(exec, "{manifest_dir}", here)
	}
	if len(m.CodeDirs) > 0 {
		top["path"] = m.CodeDirs
	}
	if len(m.Command) == 0 {
		return
	}
	command := slices.Clone(m.Command)
	if own := filepath.Join(dir, "bin", command[0]); dir != "" && !strings.ContainsRune(command[0], '/') {
		if _, err := os.Stat(own); err == nil {
			command[0] = own
		}
	}
	top["command"] = command
}

// replaceIn replaces a text in all strings below v.
func replaceIn(v any, old, with string) any {
	switch v := v.(type) {
	case string:
		return strings.ReplaceAll(v, old, with)
	case []any:
		for i := range v {
			v[i] = replaceIn(v[i], old, with)
		}
	case map[string]any:
		for k := range v {
			v[k] = replaceIn(v[k], old, with)
		}
	}
	return v
}

// compose writes a manifest from what the code said.
func compose(top map[string]any, e Entry, a answer) error {
	meta := map[string]any{}
	if len(a.Metadata) > 0 {
		if err := unmarshalNumbers(a.Metadata, &meta); err != nil {
			return fmt.Errorf("cannot read get_plugin_metadata(): %w", err)
		}
	}
	text := func(key string) string { s, _ := meta[key].(string); return s }
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	dist := struct{ name, version, author string }{}
	if a.Distribution != nil {
		dist.name, dist.version, dist.author = a.Distribution.Name, a.Distribution.Version, a.Distribution.Author
	}
	name := first(text("name"), e.Name)
	if e.Dialect == DialectCapabilities || a.Ecosystem {
		name = first(text("name"), dist.name, e.Name)
	}
	set := func(key, value string) {
		if value != "" {
			top[key] = value
		}
	}
	top["name"], top["module"], top["class"] = name, a.Module, a.Class
	set("version", first(text("version"), dist.version, a.Version))
	set("description", first(text("description"), a.Summary))
	set("author", first(text("author"), dist.author))
	set("category", first(text("category_override"), text("category")))
	set("interface", text("interface"))
	set("db_path", text("db_path"))
	if vars, ok := meta["env_vars"].(map[string]any); ok {
		env := map[string]string{}
		for k, v := range vars {
			env[k] = fmt.Sprint(v)
		}
		mergeEnv(top, env)
	}
	if r, ok := meta["resources"].(map[string]any); ok {
		known := map[string]any{}
		for _, k := range []string{"requires_gpu", "min_gpu_vram_mb", "recommended_gpu_vram_mb", "min_system_ram_mb"} {
			if v, ok := r[k]; ok {
				known[k] = v
			}
		}
		top["resources"] = known
	}
	composeWorkerEnv(top, meta)
	if len(a.Schema) > 0 {
		top["config_schema"] = a.Schema
	}
	return nil
}

// composeWorkerEnv turns v2's list of variables into secrets and defaults.
func composeWorkerEnv(top, meta map[string]any) {
	list, _ := meta["worker_env"].([]any)
	var secrets []any
	for _, x := range list {
		v, _ := x.(map[string]any)
		name, _ := v["name"].(string)
		if secret, _ := v["secret"].(bool); secret && name != "" {
			required, _ := v["required"].(bool)
			s := map[string]any{"name": name, "required": required}
			if d, ok := v["description"].(string); ok && d != "" {
				s["description"] = d
			}
			secrets = append(secrets, s)
		} else if def, ok := v["default"].(string); ok && name != "" {
			mergeEnv(top, map[string]string{name: def})
		}
	}
	if len(secrets) > 0 {
		top["secrets"] = secrets
	}
}

func mergeEnv(top map[string]any, vars map[string]string) {
	if len(vars) == 0 {
		return
	}
	env, _ := top["env_vars"].(map[string]any)
	if env == nil {
		env = map[string]any{}
	}
	for k, v := range vars {
		env[k] = v
	}
	top["env_vars"] = env
}

// addDrift notes what the manifest was made from, so that a change is seen.
func addDrift(top map[string]any, e Entry) error {
	drift, _ := top["drift_tracking"].(map[string]any)
	if drift == nil {
		drift = map[string]any{}
	}
	if schema, ok := top["config_schema"]; ok {
		b, err := json.Marshal(schema)
		if err != nil {
			return fmt.Errorf("cannot write the config schema: %w", err)
		}
		if drift["config_schema_hash"], err = plugins.SchemaHash(b); err != nil {
			return err
		}
	}
	if e.Manifest != nil {
		drift["source"], drift["source_hash"] = e.Manifest.Path, e.Manifest.Hash
	}
	top["drift_tracking"] = drift
	return nil
}

// checkWritten reads the manifest as the daemon will.
func checkWritten(top map[string]any) (written, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(top); err != nil {
		return written{}, fmt.Errorf("cannot write the manifest: %w", err)
	}
	m, err := plugins.ParseManifest("manifest.json", b.Bytes())
	var bad *plugins.ManifestError
	if errors.As(err, &bad) {
		words := make([]string, len(bad.Problems))
		for i, p := range bad.Problems {
			words[i] = strings.TrimSpace(p.Key + " " + p.Message)
		}
		return written{}, fmt.Errorf("cannot write a manifest for it: %s", strings.Join(words, "; "))
	}
	if err != nil {
		return written{}, fmt.Errorf("cannot write a manifest for it: it %w", err)
	}
	return written{m.Name, b.Bytes()}, nil
}

// nameIsFree refuses a name that the manifest of another environment bears.
func (in *Installer) nameIsFree(e Entry, name string) error {
	path := filepath.Join(in.o.Manifests, name+".json")
	old, err := plugins.ReadManifest(path)
	if err != nil { // there is none, or one that nobody can use
		return nil
	}
	env := installOf(*old).Env
	if env == e.EnvName {
		return nil
	}
	owner := "by hand"
	if env != "" {
		owner = fmt.Sprintf("for the environment %q", env)
	}
	return fmt.Errorf("cannot write the manifest: two plugins cannot be called %q, and %s was made %s; remove one, or give this one another name", name, path, owner)
}

// store puts a manifest where the daemon looks.
func (in *Installer) store(e Entry, w written) (string, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.nameIsFree(e, w.name); err != nil {
		return "", err
	}
	if err := os.MkdirAll(in.o.Manifests, 0o755); err != nil {
		return "", fmt.Errorf("cannot make the directory of manifests: %w", err)
	}
	path := filepath.Join(in.o.Manifests, w.name+".json")
	if err := renameio.WriteFile(path, w.content, 0o644); err != nil {
		return "", fmt.Errorf("cannot write the manifest: %w", err)
	}
	return path, nil
}

// installPart is what a written manifest says about its environment.
type installPart struct {
	Env       string `json:"env"`
	Source    string `json:"source"`
	Entry     string `json:"entry"`
	Inputs    string `json:"inputs_hash"`
	Installer string `json:"installer_version"`
}

func installOf(m plugins.Manifest) installPart {
	var top struct {
		Install installPart `json:"install"`
	}
	_ = json.Unmarshal(m.Raw, &top) // what is no object says nothing
	return top.Install
}

// sourceOf is the manifest by hand that a written one was made from, or "".
func sourceOf(m plugins.Manifest) string {
	var top struct {
		Drift struct {
			Source string `json:"source"`
		} `json:"drift_tracking"`
	}
	_ = json.Unmarshal(m.Raw, &top) // what is no object says nothing
	return top.Drift.Source
}

// namesFields is false for what base classes answer whose plugin has no schema.
func namesFields(schema json.RawMessage) bool {
	var s struct {
		Properties map[string]json.RawMessage `json:"properties"`
	}
	return json.Unmarshal(schema, &s) == nil && len(s.Properties) > 0
}

func unmarshalNumbers(b []byte, into *map[string]any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(into)
}

func withoutKey(raw json.RawMessage, key string) map[string]any {
	m := map[string]any{}
	_ = unmarshalNumbers(raw, &m) // it was read once already
	delete(m, key)
	return m
}
