package plugins

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cjmd/cjmd/internal/resource"
)

// errAdapter says that a file describes an adapter: a part that a worker of
// the HTTP dialect loads beside a tool, not a plugin of its own.
var errAdapter = errors.New("is an adapter, not a plugin")

// ParseManifest reads one manifest of any format. path is where it came from:
// its ending tells JSON from YAML, and relative code directories start there.
// Errors are *ManifestError with every problem; the manifest returned beside
// one holds what could be read (its Name, where there was one).
func ParseManifest(path string, content []byte) (*Manifest, error) {
	m := &Manifest{Path: path}
	refuse := func(problems ...ManifestProblem) (*Manifest, error) {
		return m, &ManifestError{Path: path, Problems: problems}
	}
	tree, err := decodeTree(path, content)
	if err != nil {
		return refuse(ManifestProblem{"", err.Error()})
	}
	top, ok := tree.(map[string]any)
	if !ok {
		return refuse(ManifestProblem{"", "must be one object with keys"})
	}
	raw, err := json.Marshal(top) // sorted keys: layout and order do not change the hash
	if err != nil {
		return refuse(ManifestProblem{"", err.Error()})
	}
	sum := sha256.Sum256(raw)
	m.Raw, m.Hash = raw, "sha256:"+hex.EncodeToString(sum[:])

	var problems []ManifestProblem
	f := &fields{obj: top, problems: &problems}
	if top["unit"] == "adapter" {
		m.Name, _ = top["name"].(string)
		return m, errAdapter
	}
	switch m.Format, err = format(path, top); {
	case err != nil:
		return refuse(ManifestProblem{"format_version", err.Error()})
	case m.Format == "v1":
		readV1(f, m)
	case m.Format == "v2":
		readV2(f, m)
	default:
		readV3(f, m)
	}
	if len(problems) > 0 {
		return refuse(problems...)
	}
	return m, nil
}

// format tells the three apart. A YAML file is ours even without a version:
// the Python system only ever wrote JSON.
func format(path string, top map[string]any) (string, error) {
	v, ok := top["format_version"]
	if !ok {
		if strings.EqualFold(filepath.Ext(path), ".json") {
			return "v1", nil
		}
		return "v3", nil
	}
	switch s := fmt.Sprint(v); {
	case s == "1" || strings.HasPrefix(s, "1."):
		return "v1", nil
	case s == "2" || strings.HasPrefix(s, "2."):
		return "v2", nil
	case s == "3" || strings.HasPrefix(s, "3."):
		return "v3", nil
	default:
		return "", fmt.Errorf("is %q; this program reads 1, 2 and 3", s)
	}
}

// v3Only are keys that only our own format has.
var v3Only = []string{"exec", "command", "concurrency", "isolation", "limits", "devices", "retry", "timeouts", "secrets", "path"}

// readV1 reads the flat format. Unknown keys stay in Raw.
func readV1(f *fields, m *Manifest) {
	readIdentity(f, m)
	if c := f.text("category_override"); c != "" {
		m.Category = c
	}
	m.Interface = f.text("interface")
	readPython(f, m)
	m.DBPath = f.text("db_path")
	m.Env = readEnv(f, "env_vars", false)
	readSchema(f, m)
	readResources(f, m)
	m.Runtime, m.Concurrency = readOldRuntime(f, m), 1
	for _, k := range v3Only {
		if _, ok := f.obj[k]; ok {
			m.Warnings = append(m.Warnings, fmt.Sprintf("%s is not read here; add \"format_version\": \"3\" for it", k))
		}
	}
}

// readV2 reads the nested format: install knows the environment, code the class.
func readV2(f *fields, m *Manifest) {
	code, ok := f.object("code")
	if !ok && !f.failed("code") {
		f.fail("code", "is missing; generate the manifest again")
	}
	install, ok := f.object("install")
	if !ok && !f.failed("install") {
		f.fail("install", "is missing; generate the manifest again")
	}
	if len(*f.problems) > 0 {
		return
	}
	readIdentity(code, m)
	m.Interface = code.text("interface")
	if tax, ok := code.object("taxonomy"); ok {
		if m.Category == "" {
			m.Category = tax.text("domain")
		}
		if m.Interface == "" {
			m.Interface = tax.text("interface_fqcn")
		}
	}
	readModule(code, m)
	readInterpreter(install, m, true)
	m.DBPath = install.text("db_path")
	m.Env = readEnv(install, "env_vars", false)
	readWorkerEnv(code, m)
	readSchema(code, m)
	readResources(code, m)
	overrides, _ := f.object("overrides")
	m.Runtime, m.Concurrency = readOldRuntime(overrides, m), 1
}

// readOldRuntime reads the one key of ours that older manifests may have: that
// the plugin keeps the HTTP worker of its base library.
func readOldRuntime(f *fields, m *Manifest) string {
	switch r := f.obj["runtime"]; r {
	case "http":
		return "http"
	case nil, "native":
	default:
		m.Warnings = append(m.Warnings, fmt.Sprintf("runtime %v is not read here; add \"format_version\": \"3\" for it", r))
	}
	return "native"
}

// readWorkerEnv reads v2's variables: defaults go over env_vars, secrets come
// from the secrets file.
func readWorkerEnv(code *fields, m *Manifest) {
	v, ok := code.get("worker_env")
	if !ok {
		return
	}
	list, ok := v.([]any)
	if !ok {
		code.fail("worker_env", "must be a list of objects")
		return
	}
	for i, x := range list {
		obj, ok := x.(map[string]any)
		if !ok {
			code.fail(fmt.Sprintf("worker_env[%d]", i), "must be an object with name")
			continue
		}
		e := code.sub(fmt.Sprintf("worker_env[%d]", i), obj)
		name := e.needText("name", "HF_HOME")
		if name == "" || !e.envName("name", name) {
			continue
		}
		switch secret, required := e.boolean("secret"), e.boolean("required"); {
		case secret && required:
			m.Secrets = append(m.Secrets, name)
		case secret:
			m.OptionalSecrets = append(m.OptionalSecrets, name)
		default:
			if def, ok := e.get("default"); ok {
				text, isText := def.(string)
				if !isText {
					e.fail("default", "must be text; put it in quotes")
					continue
				}
				e.templates("default", text)
				if m.Env == nil {
					m.Env = map[string]string{}
				}
				m.Env[name] = text
			}
		}
	}
}

func readIdentity(f *fields, m *Manifest) {
	m.Name = f.needText("name", "my-plugin")
	if m.Name != "" && !ValidName(m.Name) {
		f.fail("name", "is %q; use 1 to 64 of A-Z a-z 0-9 . _ - and no dot at the start", m.Name)
		m.Name = ""
	}
	m.Version = f.text("version")
	m.Description = f.text("description")
	m.Author = f.text("author")
	m.Category = f.text("category")
}

func readPython(f *fields, m *Manifest) {
	readModule(f, m)
	readInterpreter(f, m, true)
}

func readModule(f *fields, m *Manifest) {
	m.Module = f.needText("module", "my_plugin.plugin")
	m.Class = f.needText("class", "MyPlugin")
}

func readInterpreter(f *fields, m *Manifest, needed bool) {
	if needed {
		m.PythonPath = f.needText("python_path", "/opt/envs/my-plugin/bin/python")
	} else {
		m.PythonPath = f.text("python_path")
	}
	if m.PythonPath != "" && !filepath.IsAbs(m.PythonPath) {
		f.fail("python_path", "is %q; it must be the absolute path of the environment's interpreter", m.PythonPath)
	}
}

func readSchema(f *fields, m *Manifest) {
	v, ok := f.get("config_schema")
	if !ok {
		return
	}
	obj, ok := v.(map[string]any)
	if !ok {
		m.Warnings = append(m.Warnings, "config_schema is no object: configurations are accepted unchecked")
		return
	}
	m.Schema, _ = json.Marshal(obj) // came out of a JSON decoder: cannot fail
	m.Warnings = append(m.Warnings, schemaWarnings(obj)...)
}

func readResources(f *fields, m *Manifest) *fields {
	r, _ := f.object("resources")
	m.Demand.RequiresGPU = r.boolean("requires_gpu")
	vram := resource.FromMB(r.number("min_gpu_vram_mb", 0))
	if m.Demand.RequiresGPU { // as in the Python system: without the flag the number means nothing
		m.Demand.MinVRAM = vram
	}
	r.number("recommended_gpu_vram_mb", 0)
	m.Demand.MinRAM = resource.FromMB(r.number("min_system_ram_mb", 0))
	return r
}

// readEnv reads NAME → text. strict also refuses unknown templates.
func readEnv(f *fields, key string, strict bool) map[string]string {
	e, ok := f.object(key)
	if !ok || len(e.obj) == 0 {
		return nil
	}
	out := make(map[string]string, len(e.obj))
	for _, name := range slices.Sorted(maps.Keys(e.obj)) {
		text, ok := e.obj[name].(string)
		if !ok {
			e.fail(name, "must be text; put it in quotes")
			continue
		}
		if !e.envName(name, name) {
			continue
		}
		if strings.ContainsRune(text, 0) {
			e.fail(name, "holds a NUL character; delete it")
		}
		if strict {
			e.templates(name, text)
		}
		out[name] = text
	}
	return out
}

// envName refuses what cannot be a variable, and those of the daemon's own.
func (f *fields) envName(key, name string) bool {
	ok := name != "" && (name[0] < '0' || name[0] > '9')
	for _, c := range []byte(name) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_')
	}
	if !ok {
		f.fail(key, "is no name of an environment variable; use A-Z, 0-9 and _")
	} else if reservedEnv(name) {
		f.fail(key, "is set by the daemon itself; delete it")
		ok = false
	}
	return ok
}

// templates refuses every ${ that begins no known template.
func (f *fields) templates(key, text string) {
	rest := templatePattern.ReplaceAllStringFunc(text, func(t string) string {
		if slices.Contains(templates, t[2:len(t)-1]) {
			return ""
		}
		return t
	})
	if i := strings.Index(rest, "${"); i >= 0 {
		f.fail(key, "uses %q; known are ${%s}", rest[i:], strings.Join(templates, "}, ${"))
	}
}
