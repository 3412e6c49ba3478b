package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Finding is one way in which a plugin is not as it was when it was installed.
type Finding struct {
	Code    string // see the constants
	Message string
	Mend    string // what to do about it
	// Blocks: no worker is started; it would crash, or be something else than
	// what was installed.
	Blocks bool
}

// Codes of findings.
const (
	FindingNoProgram   = "interpreter_missing"
	FindingIncomplete  = "environment_incomplete"
	FindingPython      = "python_changed"
	FindingPackages    = "packages_changed"
	FindingSchema      = "schema_changed"
	FindingSource      = "source_changed"
	FindingSourceGone  = "source_missing"
	FindingBadSchema   = "schema_invalid"
	FindingOtherSchema = "code_schema_changed" // found by doctor, which asks the code
)

// drift is what a written manifest remembers: v2's keys, and ours.
type drift struct {
	SchemaHash string `json:"config_schema_hash"`
	Source     string `json:"source"`      // the manifest that this one was made from
	SourceHash string `json:"source_hash"` // of its content
}

// Examine holds a plugin against this machine: its program, its environment
// and what its manifest remembers. It reads a few files and runs nothing. Ask
// it about the manifest that Catalog.Instance returned.
func Examine(m Manifest) []Finding {
	return append(examineProgram(m), examineDrift(m)...)
}

// Runnable is nil when a worker can be started, else an *UnusableError with the
// first finding that forbids it.
func Runnable(m Manifest) error {
	for _, f := range examineProgram(m) {
		if f.Blocks {
			return &UnusableError{Plugin: m.Name, Finding: f}
		}
	}
	return nil
}

func examineProgram(m Manifest) []Finding {
	program := m.PythonPath
	if len(m.Command) > 0 {
		program = m.Command[0]
	}
	info, err := os.Stat(program)
	if !filepath.IsAbs(program) || err != nil || info.IsDir() {
		return []Finding{missingProgram(m, program)}
	}
	if len(m.Command) > 0 {
		return nil
	}
	return examineEnv(m)
}

// missingProgram says why what is to be run is not there: never made, removed,
// or cut off from the Python that it rests on.
func missingProgram(m Manifest, program string) Finding {
	f := Finding{Code: FindingNoProgram, Message: program + " is not there", Mend: reinstall(m), Blocks: true}
	if program == "" {
		f.Message = "it has no environment"
	}
	if len(m.Command) > 0 {
		f.Mend = "install it, or change command in " + m.Path
		return f
	}
	target, err := os.Readlink(program)
	if err != nil {
		return f
	}
	f.Message = fmt.Sprintf("its interpreter %s points to %s, which is gone", program, target)
	if r, ok := recordOf(m); ok {
		f.Message = fmt.Sprintf("the Python %s (%s) that its environment rests on is gone", r.Python, r.Base)
	}
	return f
}

// reinstall is the command that makes the plugin's environment again.
func reinstall(m Manifest) string {
	if i, ok := installed(m); ok {
		return fmt.Sprintf("run: cjm-ctl install-all -f %s --only %s --force", i.Source, i.Entry)
	}
	if len(m.EnvSpec) > 0 {
		return "run: cjm-ctl install-all -f " + m.Path
	}
	return "make it again, or change python_path in " + m.Path
}

func recordOf(m Manifest) (EnvRecord, bool) {
	dir, ok := EnvOf(m.PythonPath)
	if !ok {
		return EnvRecord{}, false
	}
	r, err := ReadEnvRecord(dir)
	return r, err == nil
}

// examineEnv compares an environment of the installer with its record. Others
// have none: nothing is known about them.
func examineEnv(m Manifest) []Finding {
	dir, ok := EnvOf(m.PythonPath)
	if !ok {
		return nil
	}
	r, err := ReadEnvRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if i, _ := installed(m); i.Manager != "" {
			return []Finding{{FindingIncomplete, "its environment " + dir + " was not finished", reinstall(m), true}}
		}
		return nil
	case err != nil:
		return []Finding{{FindingIncomplete, err.Error(), reinstall(m), true}}
	}
	var out []Finding
	if lib := filepath.Join(dir, "lib", "python"+minor(r.Python)); !isDirectory(lib) {
		out = append(out, Finding{FindingPython, fmt.Sprintf("its environment was made with Python %s, and %s is gone", r.Python, lib), reinstall(m), true})
		return out
	}
	if v := venvVersion(dir); v != "" && r.Python != "" && minor(v) != minor(r.Python) {
		out = append(out, Finding{FindingPython, fmt.Sprintf("its environment was made with Python %s and is one of %s now", r.Python, v), reinstall(m), true})
	}
	if lock, err := ReadLock(dir); err != nil {
		out = append(out, Finding{FindingIncomplete, err.Error(), reinstall(m), true})
	} else if LockHash(lock) != r.LockHash {
		out = append(out, Finding{Code: FindingPackages, Message: "packages changed since it was installed: " + lockDifference(r.Lock, lock),
			Mend: "run: cjm-ctl regenerate-manifest " + m.Name + " to accept them, or " + strings.TrimPrefix(reinstall(m), "run: ") + " to undo them"})
	}
	return out
}

// install is what a manifest that the installer wrote says about that.
type install struct {
	Source  string `json:"source"`  // the file that asked for it
	Entry   string `json:"entry"`   // and the name in it
	Manager string `json:"manager"` // that made the environment; "" when none was made
}

func installed(m Manifest) (install, bool) {
	var top struct {
		Install *install `json:"install"`
	}
	if json.Unmarshal(m.Raw, &top) != nil || top.Install == nil || top.Install.Source == "" {
		return install{}, false // other installers write an install object, too
	}
	return *top.Install, true
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// minor cuts 3.11.7 to 3.11.
func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// venvVersion is what pyvenv.cfg says; "" where there is none.
func venvVersion(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "pyvenv.cfg"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, "=")
		if k := strings.TrimSpace(key); k == "version" || k == "version_info" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// examineDrift holds a manifest against the hashes it carries.
func examineDrift(m Manifest) []Finding {
	var top struct {
		Drift drift `json:"drift_tracking"`
	}
	if json.Unmarshal(m.Raw, &top) != nil {
		return nil
	}
	var out []Finding
	mend := "run: cjm-ctl regenerate-manifest " + m.Name
	if want := top.Drift.SchemaHash; want != "" && len(m.Schema) > 0 {
		if is, err := SchemaHash(m.Schema); err == nil && is != want {
			out = append(out, Finding{Code: FindingSchema, Message: "config_schema was changed since the manifest was written", Mend: mend})
		}
	}
	if src := top.Drift.Source; src != "" {
		content, err := readBounded(src)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			out = append(out, Finding{Code: FindingSourceGone, Message: "the manifest that it was made from is gone: " + src,
				Mend: "put it back, or remove the plugin: cjm-ctl remove " + m.Name})
		case err == nil:
			if s, _ := ParseManifest(src, content); s.Hash != top.Drift.SourceHash {
				out = append(out, Finding{Code: FindingSource, Message: "the manifest that it was made from changed: " + src, Mend: mend})
			}
		}
	}
	return out
}
