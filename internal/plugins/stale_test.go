package plugins

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// installedEnv is an environment as the installer leaves it, with one package.
func installedEnv(t *testing.T) (dir, python string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, ".echo.1a2b")
	base := filepath.Join(root, "base-python")
	put := func(path, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o755))
	}
	put(base, "#!/bin/sh\n")
	put(filepath.Join(dir, "pyvenv.cfg"), "home = /usr/bin\nversion_info = 3.11.7\n")
	put(filepath.Join(dir, "lib/python3.11/site-packages/humanize-4.9.0.dist-info/METADATA"), "")
	put(filepath.Join(dir, "lib/python3.11/site-packages/my_plugin-1.0.dist-info/direct_url.json"),
		`{"url": "https://example.org/my-plugin.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}`)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	require.NoError(t, os.Symlink(base, filepath.Join(dir, "bin/python")))
	lock, err := ReadLock(dir)
	require.NoError(t, err)
	require.Equal(t, []string{"humanize==4.9.0", "my-plugin==1.0 @ git+https://example.org/my-plugin.git@abc123"}, lock)
	record, err := json.Marshal(EnvRecord{Format: 1, Env: "echo", Python: "3.11.7", Base: base, Lock: lock, LockHash: LockHash(lock)})
	require.NoError(t, err)
	put(filepath.Join(dir, EnvRecordFile), string(record))
	link := filepath.Join(root, "echo")
	require.NoError(t, os.Symlink(filepath.Base(dir), link))
	return dir, filepath.Join(link, "bin/python")
}

func TestExamine_TellsWhatChangedAndHowToMendIt(t *testing.T) {
	t.Parallel()
	site := "lib/python3.11/site-packages"
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string) error
		code   string
		words  string
		blocks bool
	}{
		"the base interpreter is gone": {func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "../base-python")) },
			FindingNoProgram, "the Python 3.11.7 (", true},
		"the interpreter is gone": {func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "bin/python")) },
			FindingNoProgram, "bin/python is not there", true},
		"the environment is gone": {func(_ *testing.T, dir string) error { return os.RemoveAll(dir) },
			FindingNoProgram, "bin/python is not there", true},
		"another Python": {func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "pyvenv.cfg"), []byte("version = 3.12.1\n"), 0o644)
		}, FindingPython, "made with Python 3.11.7 and is one of 3.12.1 now", true},
		"its library is gone": {func(_ *testing.T, dir string) error { return os.RemoveAll(filepath.Join(dir, "lib")) },
			FindingPython, "made with Python 3.11.7, and ", true},
		"a damaged record": {func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, EnvRecordFile), []byte("{"), 0o644)
		}, FindingIncomplete, "cannot understand the record", true},
		"a package was upgraded": {func(_ *testing.T, dir string) error {
			return os.Rename(filepath.Join(dir, site, "humanize-4.9.0.dist-info"), filepath.Join(dir, site, "humanize-4.10.0.dist-info"))
		}, FindingPackages, "humanize==4.9.0 became humanize==4.10.0", false},
		"a package went": {func(_ *testing.T, dir string) error {
			return os.RemoveAll(filepath.Join(dir, site, "humanize-4.9.0.dist-info"))
		}, FindingPackages, "humanize==4.9.0 is gone", false},
		"a package came": {func(_ *testing.T, dir string) error {
			return os.Mkdir(filepath.Join(dir, site, "idna-3.7.dist-info"), 0o755)
		}, FindingPackages, "idna==3.7 was added", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, python := installedEnv(t)
			man := Manifest{Name: "echo", PythonPath: python, Path: "/m/echo.json", Raw: json.RawMessage(`{"install":{"source":"/p/plugins.yaml","entry":"echo"}}`)}
			require.Empty(t, Examine(man), "whole before")
			require.NoError(t, Runnable(man))
			require.NoError(t, c.damage(t, dir))
			found := Examine(man)
			require.Len(t, found, 1)
			assert.Equal(t, c.code, found[0].Code)
			assert.Contains(t, found[0].Message, c.words)
			assert.Contains(t, found[0].Mend, "cjm-ctl install-all -f /p/plugins.yaml --only echo --force")
			if err := Runnable(man); c.blocks {
				require.ErrorContains(t, err, c.words)
			} else {
				require.NoError(t, err, "it can run, and is listed as changed")
			}
		})
	}
}

func TestExamine_UnfinishedEnvironment(t *testing.T) {
	t.Parallel()
	dir, _ := installedEnv(t)
	require.NoError(t, os.Remove(filepath.Join(dir, EnvRecordFile)))
	man := Manifest{Name: "echo", PythonPath: filepath.Join(dir, "bin/python"), Path: "/m/echo.json", Raw: json.RawMessage(`{"install":{"source":"/p/plugins.yaml","entry":"echo","manager":"uv"}}`)}
	require.ErrorContains(t, Runnable(man), "was not finished")
	man.Raw = json.RawMessage(`{"install":{"source":"/p/plugins.yaml","entry":"echo"}}`)
	require.NoError(t, Runnable(man), "one that a manifest brought along")
	man.Raw = json.RawMessage(`{"format_version":"2.0","install":{"conda_env":"echo","package_source":"x"}}`)
	require.NoError(t, Runnable(man), "an environment that others made has no record")
}

func TestExamine_ManifestDrift(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := filepath.Join(dir, "manifest.yaml")
	require.NoError(t, os.WriteFile(source, []byte("name: echo\nmodule: m\nclass: C\n"), 0o644))
	src, err := ParseManifest(source, []byte("name: echo\nmodule: m\nclass: C\n"))
	require.NoError(t, err)
	hash, err := SchemaHash(json.RawMessage(`{"type":"object","properties":{"a":{"type":"integer"}}}`))
	require.NoError(t, err)
	read := func(kind string) Manifest {
		text := fmt.Sprintf(`{"format_version":"3","name":"echo","module":"m","class":"C","python_path":"/bin/sh",
			"config_schema":{"properties":{"a":{"type":%q}},"type":"object"},
			"drift_tracking":{"config_schema_hash":%q,"source":%q,"source_hash":%q}}`, kind, hash, source, src.Hash)
		m, err := ParseManifest("/m/echo.json", []byte(text))
		require.NoError(t, err)
		return *m
	}
	require.Empty(t, Examine(read("integer")))
	found := Examine(read("number"))
	require.Len(t, found, 1)
	assert.Equal(t, FindingSchema, found[0].Code)
	assert.Equal(t, "run: cjm-ctl regenerate-manifest echo", found[0].Mend)

	require.NoError(t, os.WriteFile(source, []byte("name: echo\nmodule: m2\nclass: C\n"), 0o644))
	found = Examine(read("integer"))
	require.Len(t, found, 1)
	assert.Equal(t, FindingSource, found[0].Code)
	require.NoError(t, os.Remove(source))
	assert.Equal(t, FindingSourceGone, Examine(read("integer"))[0].Code)
}
