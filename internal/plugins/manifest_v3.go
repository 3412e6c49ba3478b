package plugins

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// requirable are the isolation items that an instance can insist on.
var requirable = []string{"memory", "pids", "fs", "net", "gpu"}

// readV3 reads our own format, strictly: api/manifest.schema.json says the
// same to editors and validators.
func readV3(f *fields, m *Manifest) {
	f.get("format_version")
	readIdentity(f, m)
	m.Interface = f.text("interface")
	m.Runtime = f.oneOf("runtime", "native", "http", "exec")
	if m.Runtime == "" {
		m.Runtime = "native"
	}
	readProgram(f, m)
	readExec(f, m)
	m.Adapters = readAdapters(f)
	m.CodeDirs = readCodeDirs(f, m.Path)
	m.Env = readEnv(f, "env_vars", true)
	if env, ok := f.object("env"); ok {
		m.EnvSpec, _ = json.Marshal(env.obj) // came out of a decoder: cannot fail
	}
	m.DBPath = f.text("db_path")
	if v, ok := f.get("config_schema"); ok {
		if _, isObject := v.(map[string]any); !isObject {
			f.fail("config_schema", "must be an object: a JSON Schema with properties")
		}
	}
	if !f.failed("config_schema") {
		readSchema(f, m)
	}
	m.Strict = f.boolean("strict")
	readSecrets(f, m)
	readResources(f, m).strict()
	readBounds(f, m)
	// Written by the installer, for itself and for Examine.
	f.object("install")
	f.object("drift_tracking")
	f.strict()
}

// readProgram reads what is executed: a Python class, or a command.
func readProgram(f *fields, m *Manifest) {
	m.Command = f.texts("command")
	readInterpreter(f, m, false)
	_, hasCommand := f.obj["command"]
	if m.Runtime == "exec" || hasCommand {
		if len(m.Command) == 0 && !f.failed("command") {
			f.fail("command", "is missing or empty; give the program and its arguments as a list")
		}
		m.Module, m.Class = f.text("module"), f.text("class")
		if len(m.Command) > 0 && strings.ContainsRune(m.Command[0], '/') && !filepath.IsAbs(m.Command[0]) {
			m.Command[0] = filepath.Join(filepath.Dir(m.Path), m.Command[0])
		}
		return
	}
	readModule(f, m)
}

// readCodeDirs accepts one directory or a list.
func readCodeDirs(f *fields, manifest string) []string {
	var dirs []string
	if s, ok := f.obj["path"].(string); ok {
		f.get("path")
		if s == "" {
			f.fail("path", "is empty; name a directory or delete it")
			return nil
		}
		dirs = []string{s}
	} else {
		dirs = f.texts("path")
	}
	for i, d := range dirs {
		if !filepath.IsAbs(d) {
			dirs[i] = filepath.Join(filepath.Dir(manifest), d)
		}
	}
	return dirs
}

// readSecrets accepts names, and objects that say more.
func readSecrets(f *fields, m *Manifest) {
	v, ok := f.get("secrets")
	if !ok {
		return
	}
	list, ok := v.([]any)
	if !ok {
		f.fail("secrets", "must be a list of names")
		return
	}
	for i, x := range list {
		key := fmt.Sprintf("secrets[%d]", i)
		name, required := "", true
		switch x := x.(type) {
		case string:
			name = x
			f.envName(key, name)
		case map[string]any:
			s := f.sub(key, x)
			name = s.needText("name", "API_KEY")
			if name != "" {
				s.envName("name", name)
			}
			if _, given := s.get("required"); given {
				required = s.boolean("required")
			}
			s.text("description")
			s.strict()
		default:
			f.fail(key, "must be a name, or an object with name")
		}
		if required {
			m.Secrets = append(m.Secrets, name)
		} else {
			m.OptionalSecrets = append(m.OptionalSecrets, name)
		}
	}
}

func readBounds(f *fields, m *Manifest) {
	m.Concurrency = max(1, f.integer("concurrency", 1, 1024))
	if iso, ok := f.object("isolation"); ok {
		m.Isolation.Tier = iso.oneOf("tier", "auto", "0", "1", "2", "3")
		m.Isolation.Require = iso.texts("require")
		for i, r := range m.Isolation.Require {
			if !slices.Contains(requirable, r) {
				iso.fail(fmt.Sprintf("require[%d]", i), "is %q; it must be one of %s", r, strings.Join(requirable, ", "))
			}
		}
		m.Isolation.Network = iso.oneOf("network", "host", "none", "loopback")
		m.Isolation.Read = iso.texts("read")
		for i, path := range m.Isolation.Read {
			if !filepath.IsAbs(path) || filepath.Clean(path) != path {
				iso.fail(fmt.Sprintf("read[%d]", i), "is %q; it must be an absolute path without . and ..", path)
			}
		}
		iso.strict()
	}
	if l, ok := f.object("limits"); ok {
		m.Limits.MemoryMaxMB = int64(l.integer("memory_max_mb", 1, 1<<30))
		m.Limits.PidsMax = l.integer("pids_max", 1, 1<<22)
		m.Limits.CPUWeight = l.integer("cpu_weight", 1, 10_000)
		m.Limits.CPUMax = l.number("cpu_max", 0.01)
		m.Limits.IOWeight = l.integer("io_weight", 1, 10_000)
		m.Limits.NoFile = l.integer("nofile", 16, 1<<30)
		m.Limits.Nice = l.integer("nice", -20, 19)
		l.strict()
	}
	if d, ok := f.object("devices"); ok {
		m.Demand.Devices = d.integer("count", 1, 64)
		m.Placement = Placement{Count: m.Demand.Devices, Pin: deviceNames(d, "pin"), Prefer: deviceNames(d, "prefer"), Avoid: deviceNames(d, "avoid")}
		d.strict()
	}
	if r, ok := f.object("retry"); ok {
		m.MaxAttempts = r.integer("max_attempts", 1, 100)
		r.strict()
	}
	if t, ok := f.object("timeouts"); ok {
		m.Timeouts = Timeouts{
			Start: t.duration("start"), Stall: t.duration("stall"), Run: t.duration("run"),
			CancelGrace: t.duration("cancel_grace"), InterruptGrace: t.duration("interrupt_grace"), StopGrace: t.duration("stop_grace"),
		}
		t.strict()
	}
}

const maxDeviceIndex = 1 << 16

// deviceNames reads a list of accelerators; an index may stand as a number.
func deviceNames(f *fields, key string) []string {
	v, ok := f.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		f.fail(key, "must be a list of UUIDs or indices")
		return nil
	}
	var out []string
	for i, x := range list {
		name := ""
		switch x := x.(type) {
		case string:
			name = x
		case json.Number:
			if n, err := x.Float64(); err == nil && n >= 0 && n <= maxDeviceIndex && n == math.Trunc(n) {
				name = strconv.Itoa(int(n))
			}
		}
		if !ValidDevice(name) {
			f.fail(fmt.Sprintf("%s[%d]", key, i), "must be the UUID or the index of an accelerator")
			continue
		}
		out = append(out, name)
	}
	return out
}

// ValidDevice reports whether name can be an accelerator's UUID or index.
func ValidDevice(name string) bool {
	if name == "" || len(name) > 96 {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' })
}
