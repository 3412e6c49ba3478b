package envs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// toolEnv is the environment of the tools: ours, without what would make them
// work on another environment than the one they are told, and with what makes
// their output lines instead of drawings.
func toolEnv(env []string) []string {
	drop := []string{"VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE",
		"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_REQUIRE_VIRTUALENV", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_TARGET"}
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(drop, name)
	})
	add := func(name, value string, keep bool) {
		if !keep || !slices.ContainsFunc(out, func(kv string) bool { return strings.HasPrefix(kv, name+"=") }) {
			out = append(out, name+"="+value)
		}
	}
	add("PYTHONUNBUFFERED", "1", false)
	add("PYTHONIOENCODING", "utf-8", false)
	add("PYTHONNOUSERSITE", "1", false)
	add("PIP_DISABLE_PIP_VERSION_CHECK", "1", false)
	add("PIP_NO_INPUT", "1", false)
	add("UV_NO_PROGRESS", "1", false)
	add("UV_SYSTEM_CERTS", "true", true) // a site's own certificates count, as they do for pip
	add("NO_COLOR", "1", false)
	add("GIT_TERMINAL_PROMPT", "0", false)
	add("MAMBA_NO_BANNER", "1", false)
	return out
}

// inputsHash identifies everything that an environment is made from: what
// changes it makes the environment anew.
func inputsHash(manager string, e Entry) (string, error) {
	type local struct{ Arg, Sum string }
	in := struct {
		Version  int
		Manager  string
		Python   string
		EnvFile  string
		Words    []string
		Files    []local
		Index    string
		Packages []local
	}{Version: 1, Manager: manager, Python: e.Python, EnvFile: e.EnvFile, Index: withoutPassword(e.Index)}
	for _, path := range append(slices.Clone(e.ReqFiles), e.Lock, e.EnvFile) {
		if path == "" || strings.Contains(path, "://") {
			continue
		}
		content, err := readBounded(path)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(content)
		in.Files = append(in.Files, local{path, hex.EncodeToString(sum[:])})
	}
	reqs := slices.Clone(e.Requirements)
	if e.Package != nil {
		reqs = append(reqs, *e.Package)
	}
	for _, r := range reqs {
		in.Words = append(in.Words, r.args()...)
		if r.Path != "" {
			sum, err := treeSum(r.Path, r.Editable)
			if err != nil {
				return "", fmt.Errorf("cannot look at %s: %w", r.Path, err)
			}
			in.Packages = append(in.Packages, local{r.Arg, sum})
		}
	}
	b, err := json.Marshal(in)
	if err != nil {
		return "", fmt.Errorf("cannot describe the inputs of %s: %w", e.Name, err)
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// manifestHash identifies what a manifest is made from, besides the code.
func (e Entry) manifestHash() string {
	in := struct {
		Version                       int
		Dialect, Module, Class        string
		Category, Package, SourceHash string
		EnvVars                       map[string]string
		Adapters                      []string
	}{Version: 1, Dialect: e.Dialect, Module: e.Module, Class: e.Class, Category: e.Category, EnvVars: e.EnvVars, Adapters: e.Adapters}
	if e.Package != nil {
		in.Package = e.Package.Text
	}
	if e.Manifest != nil {
		in.SourceHash = e.Manifest.Hash + e.Manifest.Path
	}
	b, _ := json.Marshal(in) // texts alone: cannot fail
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func withoutPassword(index string) string {
	u, err := url.Parse(index)
	if err != nil || u.User == nil {
		return index
	}
	u.User = nil
	return u.String()
}

// builtByTools are directories inside a source tree that installing it writes.
var builtByTools = []string{".git", "__pycache__", "build", "dist", ".venv", ".pytest_cache", ".mypy_cache"}

// maxSummed bounds what of one file is read for its sum; of a longer one the
// size and time count.
const maxSummed = 8 << 20

// treeSum is the sum of a file or a directory that is installed. Of an editable
// one only the description counts: its code is used where it lies.
func treeSum(root string, editable bool) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && (slices.Contains(builtByTools, d.Name()) || strings.HasSuffix(d.Name(), ".egg-info") || editable) {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || editable && !slices.Contains([]string{"pyproject.toml", "setup.py", "setup.cfg"}, d.Name()) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() > maxSummed {
			fmt.Fprintf(h, "%s\x00%d\x00%d\n", rel, info.Size(), info.ModTime().UnixNano())
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s\x00%x\n", rel, sha256.Sum256(content))
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
