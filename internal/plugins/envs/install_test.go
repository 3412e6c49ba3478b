package envs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/plugins"
)

func TestInstall_MakesAnEnvironmentAndItsManifest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: %q, category: text, env_vars: {A: b}}]", b.echo("1.0")))
	r := b.mustInstall(f, PlanOptions{})
	assert.Equal(t, Create, r.Action)
	assert.Equal(t, Done, r.State)
	assert.Positive(t, r.Bytes)

	m, err := plugins.ReadManifest(r.Manifest)
	require.NoError(t, err)
	assert.Equal(t, "echo", m.Name)
	assert.Equal(t, "1.0", m.Version)
	assert.Equal(t, "Made by a test", m.Description)
	assert.Equal(t, "text", m.Category)
	assert.Equal(t, map[string]string{"A": "b"}, m.Env)
	assert.Equal(t, "echo_plugin.plugin", m.Module)
	assert.Equal(t, "Echo", m.Class)
	assert.JSONEq(t, `{"type":"object","properties":{"loud":{"type":"boolean","default":false}}}`, string(m.Schema))
	assert.Equal(t, pythonIn(r.Dir), m.PythonPath)
	assert.Empty(t, plugins.Examine(*m), "fresh from the installer nothing is stale")
	compiled, err := filepath.Glob(filepath.Join(r.Dir, "lib/python*/site-packages/echo_plugin/__pycache__/plugin.*.pyc"))
	require.NoError(t, err)
	assert.Len(t, compiled, 1, "a worker that may not write there need not compile at each start")
	require.NoError(t, exec.Command(m.PythonPath, "-c", "import "+m.Module).Run())

	link, err := os.Readlink(filepath.Join(b.in.o.Envs, "echo"))
	require.NoError(t, err)
	assert.Equal(t, filepath.Base(r.Dir), link, "a link that a moved state directory keeps")

	states := []State{}
	for _, u := range b.updates {
		if len(states) == 0 || states[len(states)-1] != u.State {
			states = append(states, u.State)
		}
	}
	assert.Equal(t, []State{Creating, Installing, Introspecting, Finishing, Done}, states)
}

func TestInstall_DoesOnlyWhatIsNeeded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	yaml := fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0"))
	first := b.mustInstall(b.file(yaml), PlanOptions{})

	again := b.mustInstall(b.file(yaml), PlanOptions{})
	assert.Equal(t, Kept, again.State)
	assert.Equal(t, first.Dir, again.Dir)

	b.echo("1.0") // written anew, with the same content
	assert.Equal(t, Keep, b.plan(b.file(yaml), PlanOptions{})[0].Action)

	renamed := b.mustInstall(b.file(strings.Replace(yaml, "}]", ", category: text}]", 1)), PlanOptions{})
	assert.Equal(t, Regenerate, renamed.Action, "a category needs no new environment")
	assert.Equal(t, first.Dir, renamed.Dir)

	newer := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: echo, category: text, package: %q}]", b.echo("2.0"))), PlanOptions{})
	assert.Equal(t, Rebuild, newer.Action)
	assert.NotEqual(t, first.Dir, newer.Dir)
	assert.DirExists(t, first.Dir, "until the daemon knows of the new one")
	stays, err := b.in.Clean("echo")
	require.NoError(t, err)
	assert.Empty(t, stays)
	assert.NoDirExists(t, first.Dir, "nobody used the old one")
	require.Len(t, newer.Packages, 1)
	assert.Contains(t, newer.Packages[0], "became echo-plugin==2.0 @ file://")

	require.NoError(t, os.Remove(newer.Manifest))
	assert.Equal(t, "the manifest is missing", b.plan(b.file(fmt.Sprintf("plugins: [{name: echo, category: text, package: %q}]", b.echo("2.0"))), PlanOptions{})[0].Reason)

	forced := b.mustInstall(b.file(yaml), PlanOptions{Force: true})
	assert.Equal(t, Rebuild, forced.Action)
}

// Ctrl-C in the middle: what was finished stays, what was not begins anew, and
// an environment that was there before is as it was.
func TestInstall_InterruptedAndResumed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0"))), PlanOptions{})
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}, {name: other, package: %q}]", b.echo("2.0"),
		b.wheel("other", "1.0", map[string]string{"other/__init__.py": echoPlugin})))

	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("Ctrl-C")
	results := b.in.Install(ctx, b.plan(f, PlanOptions{}), func(u Update) {
		if u.Name == "echo" && u.State == Introspecting { // late: everything is on the disk
			cancel(stop)
		}
	})
	require.ErrorIs(t, results[0].Err, stop)
	assert.Equal(t, Failed, results[0].State)
	assert.Equal(t, old.Dir, b.in.current("echo"), "the old environment is in force")
	assert.Equal(t, []string{old.Dir}, b.in.builds("echo"), "and nothing else is left of the new one")
	man, err := plugins.ReadManifest(old.Manifest)
	require.NoError(t, err)
	require.Empty(t, plugins.Examine(*man))

	results = b.in.Install(t.Context(), b.plan(f, PlanOptions{}), b.report)
	for _, r := range results {
		require.NoError(t, r.Err)
	}
	assert.Equal(t, Done, results[0].State)
}

// A crash leaves what no defer removes.
func TestInstall_WhatACrashLeftIsMadeAnew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0")))
	left := filepath.Join(b.in.o.Envs, ".echo.0a1b2c3d")
	write(t, left, "bin/python", "half")
	r := b.mustInstall(f, PlanOptions{})
	assert.NoDirExists(t, left)
	// Cut off after the link was turned and before the manifest was written.
	require.NoError(t, os.Remove(filepath.Join(r.Dir, plugins.EnvRecordFile)))
	tasks := b.plan(f, PlanOptions{})
	assert.Equal(t, "the environment was not finished", tasks[0].Reason)
	assert.Equal(t, Done, b.mustInstall(f, PlanOptions{}).State)
}

func TestInstall_OneFailureDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	broken := b.wheel("broken", "1.0", map[string]string{"broken/__init__.py": "print('x' * (1 << 21))\nimport sys; sys.exit(3)"})
	f := b.file(fmt.Sprintf(`plugins:
  - {name: echo, package: %q}
  - {name: broken, package: %q}
  - {name: nothing, package: %q}
  - {name: absent, package: "no-such-package-of-ours==1.0"}
`, b.echo("1.0"), broken, b.wheel("nothing", "1.0", map[string]string{"nothing/__init__.py": "X = 1"})))
	r := b.install(f, PlanOptions{})
	require.NoError(t, r[0].Err)
	require.ErrorContains(t, r[1].Err, "cannot use what was installed: SystemExit: 3")
	require.ErrorContains(t, r[2].Err, "no plugin was found in nothing.plugin, nothing.capability, nothing: there is no get_plugin_metadata() and no class with execute")
	var fail *StepError
	require.ErrorAs(t, r[3].Err, &fail)
	assert.Contains(t, strings.Join(fail.Tail, "\n"), "no-such-package-of-ours")
	log, err := os.ReadFile(r[1].Log)
	require.NoError(t, err)
	assert.Greater(t, len(log), 1<<21, "everything it printed is in its log")
	for _, name := range []string{"broken", "nothing", "absent"} {
		assert.Empty(t, b.in.builds(name), name)
	}
}

func TestInstall_TwoPluginsOfOneName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	meta := "def get_plugin_metadata():\n    return {'name': 'same', 'module': '%s', 'class': 'Echo', 'unknown': {'kept': 1}}\n"
	one := b.wheel("one", "1.0", map[string]string{"one/__init__.py": echoPlugin, "one/meta.py": fmt.Sprintf(meta, "one")})
	two := b.wheel("two", "1.0", map[string]string{"two/__init__.py": echoPlugin, "two/meta.py": fmt.Sprintf(meta, "two")})
	first := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: one, package: %q}]", one)), PlanOptions{})
	assert.Equal(t, "same", first.Plugin)
	m, err := plugins.ReadManifest(first.Manifest)
	require.NoError(t, err)
	assert.Contains(t, string(m.Raw), `"unknown":{"kept":1}`, "what no format of ours has is kept")
	r := b.install(b.file(fmt.Sprintf("plugins: [{name: two, package: %q}]", two)), PlanOptions{})
	require.ErrorContains(t, r[0].Err, `two plugins cannot be called "same"`)
	require.ErrorContains(t, r[0].Err, `was made for the environment "one"`)
}

func TestInstall_MetadataOfThePythonSystem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wheel := b.wheel("cjm_echo_plugin", "0.1", map[string]string{
		"cjm_echo_plugin/__init__.py": "", "cjm_echo_plugin/plugin.py": echoPlugin,
		"cjm_echo_plugin/meta.py": `
import os, sys
def get_plugin_metadata():
    print("{this is not the answer}")
    return {"name": "cjm-echo", "version": "0.1", "type": "echo", "category": "text", "interface": "cjm.Base",
        "module": "cjm_echo_plugin.plugin", "class": "Echo", "python_path": sys.executable, "db_path": "/tmp/echo.db",
        "resources": {"requires_gpu": False, "min_system_ram_mb": 100, "platforms": ["linux"]}, "env_vars": {"N": 4},
        "worker_env": [{"name": "API_KEY", "secret": True, "required": True}, {"name": "MODE", "default": "fast"}]}
`})
	r := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: anything, package: %q}]", wheel)), PlanOptions{})
	m, err := plugins.ReadManifest(r.Manifest)
	require.NoError(t, err)
	assert.Equal(t, "cjm-echo", m.Name)
	assert.Equal(t, "cjm.Base", m.Interface)
	assert.Equal(t, "/tmp/echo.db", m.DBPath)
	assert.Equal(t, map[string]string{"N": "4", "MODE": "fast"}, m.Env)
	assert.Equal(t, []string{"API_KEY"}, m.Secrets)
	assert.EqualValues(t, 100<<20, m.Demand.MinRAM)
	assert.Contains(t, string(m.Raw), `"platforms":["linux"]`)
}

// A package of the Python system without metadata is called by its distribution,
// there and here; its label is for the file alone.
func TestInstall_NameWithoutMetadata(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wheel := b.wheel("cjm_graph_plugin", "0.1", map[string]string{
		"cjm_plugin_system/__init__.py": "class PluginInterface: pass\n", "cjm_graph_plugin/__init__.py": "",
		"cjm_graph_plugin/plugin.py": "from cjm_plugin_system import PluginInterface\nclass Graph(PluginInterface):\n    name = 'sqlite_graph'\n    def execute(self): pass\n"})
	r := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: label, package: %q}]", wheel)), PlanOptions{})
	assert.Equal(t, "cjm-graph-plugin", r.Plugin)
}

func TestInstall_SchemaThatIsNoSchema(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, c := range map[string]struct{ schema, warning string }{
		"list":   {"[1, 2]", "the config schema is list, not an object: it is left out"},
		"raises": {"1 / 0", "get_config_schema() failed: ZeroDivisionError"},
	} {
		wheel := b.wheel(name+"_plugin", "1.0", map[string]string{name + "_plugin/__init__.py": "class P:\n    def execute(self): pass\n    def get_config_schema(self): return " + c.schema + "\n"})
		r := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: %s, package: %q}]", name, wheel)), PlanOptions{})
		require.Len(t, r.Warnings, 1, name)
		assert.Contains(t, r.Warnings[0], c.warning)
		m, err := plugins.ReadManifest(r.Manifest)
		require.NoError(t, err)
		assert.Empty(t, m.Schema)
	}
	wheel := b.wheel("odd_plugin", "1.0", map[string]string{"odd_plugin/__init__.py": "class P:\n    def execute(self): pass\n    def get_config_schema(self): return {'f': float('nan')}\n"})
	r := b.install(b.file(fmt.Sprintf("plugins: [{name: odd, package: %q}]", wheel)), PlanOptions{})
	require.ErrorContains(t, r[0].Err, "the config schema is no JSON")
}

func TestInstall_ManifestOfAPluginThatNeedsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	write(t, b.dir, "stats/manifest.yaml", "name: stats\nmodule: stats\nclass: Stats\npath: .\n")
	r := b.mustInstall(b.file("plugins: [{manifest: stats}]"), PlanOptions{})
	assert.Empty(t, r.Dir)
	m, err := plugins.ReadManifest(r.Manifest)
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(b.dir, "stats")}, m.CodeDirs)
	assert.Equal(t, Kept, b.mustInstall(b.file("plugins: [{manifest: stats}]"), PlanOptions{}).State)
	write(t, b.dir, "stats/manifest.yaml", "name: stats\nmodule: stats\nclass: Stats2\npath: .\n")
	assert.Equal(t, plugins.FindingSource, plugins.Examine(*m)[1].Code, "besides the interpreter, which the daemon looks up")
	r = b.mustInstall(b.file("plugins: [{manifest: stats}]"), PlanOptions{})
	assert.Equal(t, Regenerate, r.Action)
	m, err = plugins.ReadManifest(r.Manifest)
	require.NoError(t, err)
	assert.Equal(t, "Stats2", m.Class)
}

// Placeholders keep their meaning although the copy lies elsewhere.
func TestInstall_ManifestOfAProgram(t *testing.T) {
	t.Parallel()
	b := setup(t)
	write(t, b.dir, "conv/manifest.yaml", "name: conv\nruntime: exec\ncommand: [./conv.sh, -q]\nexec:\n  args: [\"{manifest_dir}/x\", [-ss, \"{manifest_dir}{kwargs.start}\"]]\n")
	r := b.mustInstall(b.file("plugins: [{manifest: conv}]"), PlanOptions{})
	m, err := plugins.ReadManifest(r.Manifest)
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(b.dir, "conv/conv.sh"), "-q"}, m.Command)
	var top struct {
		Exec struct{ Args []any }
	}
	require.NoError(t, json.Unmarshal(m.Raw, &top))
	here := filepath.Join(b.dir, "conv")
	assert.Equal(t, []any{here + "/x", []any{"-ss", here + "{kwargs.start}"}}, top.Exec.Args)
}

func TestInstall_ManifestWithItsEnvironment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dep := b.wheel("dep", "1.0", map[string]string{"dep.py": "X = 1\n"})
	write(t, b.dir, "plug/code/plug.py", "import dep\nclass Plug:\n    def execute(self): return dep.X\n")
	write(t, b.dir, "plug/manifest.yaml", fmt.Sprintf("name: plug\nmodule: plug\nclass: Plug\npath: code\nenv: {requirements: [%q]}\nconcurrency: 3\n", dep))
	r := b.mustInstall(b.file("plugins: [{manifest: plug}]"), PlanOptions{})
	m, err := plugins.ReadManifest(r.Manifest)
	require.NoError(t, err)
	assert.Equal(t, 3, m.Concurrency)
	assert.Equal(t, []string{filepath.Join(b.dir, "plug/code")}, m.CodeDirs)
	assert.Equal(t, pythonIn(r.Dir), m.PythonPath)

	write(t, b.dir, "plug/code/plug.py", "import nothing_like_this\n")
	failed := b.install(b.file("plugins: [{manifest: plug}]"), PlanOptions{Force: true})
	require.ErrorContains(t, failed[0].Err, "No module named 'nothing_like_this'")
	assert.Equal(t, r.Dir, b.in.current("plug"), "the one that works stays")
}

func TestInstall_AnotherInstallerIsAtWork(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, os.MkdirAll(b.in.o.Envs, 0o755))
	unlock, err := lock(filepath.Join(b.in.o.Envs, ".echo.lock"))
	require.NoError(t, err)
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0")))
	require.ErrorContains(t, b.install(f, PlanOptions{})[0].Err, "another installer is at work on it")
	unlock()
	require.NoError(t, b.install(f, PlanOptions{})[0].Err)
}

func TestInstall_EnvironmentMadeByHandIsNotTouched(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mine := write(t, b.in.o.Envs, "echo/mine.txt", "precious")
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0")))
	require.ErrorContains(t, b.install(f, PlanOptions{})[0].Err, "was not made by this installer; --force replaces it")
	require.FileExists(t, mine)
	require.NoError(t, b.install(f, PlanOptions{Force: true})[0].Err)
}

// flakyIndex is a package index that breaks off the first downloads half-way.
func flakyIndex(t *testing.T, wheel string, breaks int32) (address string, asked *atomic.Int32) {
	t.Helper()
	content, err := os.ReadFile(wheel)
	require.NoError(t, err)
	asked = &atomic.Int32{}
	mux := http.NewServeMux()
	name := filepath.Base(wheel)
	mux.HandleFunc("/simple/echo-plugin/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "<html><body><a href=\"/files/%s\">%s</a></body></html>", name, name)
	})
	mux.HandleFunc("/files/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.Header.Get("Range") == "" && asked.Add(1) <= breaks {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:len(content)/2])
			panic(http.ErrAbortHandler) // the connection breaks
		}
		http.ServeFile(w, r, wheel)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL + "/simple", asked
}

func TestInstall_NetworkThatDiesHalfWay(t *testing.T) {
	t.Parallel()
	b := setup(t, realTool(t, os.Environ()))
	b.in.o.Env = append(b.in.o.Env, "UV_OFFLINE=0", "NO_PROXY=127.0.0.1")
	index, asked := flakyIndex(t, b.echo("1.0"), 1)
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: echo-plugin==1.0, index: %q}]", index))
	r := b.mustInstall(f, PlanOptions{})
	assert.Equal(t, Done, r.State)
	assert.GreaterOrEqual(t, asked.Load(), int32(2))
	waited := false
	for _, u := range b.updates {
		waited = waited || strings.Contains(u.Detail, "the network failed; attempt 2 in 1ms")
	}
	assert.True(t, waited, "the wait is shown: %v", b.updates)

	dead, _ := flakyIndex(t, b.echo("2.0"), 1<<30)
	f = b.file(fmt.Sprintf("plugins: [{name: echo, package: echo-plugin==2.0, index: %q}]", dead))
	failed := b.install(f, PlanOptions{})[0]
	var fail *StepError
	require.ErrorAs(t, failed.Err, &fail)
	assert.True(t, fail.Network)
	assert.NotEmpty(t, fail.Tail)
	assert.Contains(t, failed.Err.Error(), "(the network failed)")
	assert.Equal(t, r.Dir, b.in.current("echo"))
}

// What a tool started ends with it: it would write into a directory that is
// being removed.
func TestSteps_CancelEndsTheWholeGroup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("Ctrl-C")
	child := -1
	s := &steps{env: os.Environ(), dir: b.dir, log: io.Discard, line: func(l string) {
		pid, err := strconv.Atoi(l)
		if assert.NoError(t, err) {
			child, err = unix.PidfdOpen(pid, 0)
			assert.NoError(t, err)
		}
		cancel(stop)
	}}
	require.ErrorIs(t, s.run(ctx, "wait", []string{"sh", "-c", "sleep 1000 & echo $!; wait"}), stop)
	defer unix.Close(child)
	ended, err := unix.Poll([]unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}, 10_000)
	require.NoError(t, err)
	assert.Equal(t, 1, ended, "the child of the tool lives on")
}

func TestPlan_UnknownNameIsSuggested(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.in.Plan(t.Context(), b.file("plugins: [{name: whisper, package: a}]"), PlanOptions{Only: []string{"wisper"}})
	require.ErrorContains(t, err, `has no such entry (did you mean "whisper"?)`)
}

func TestRecord_SaysHowItWasMade(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: echo, package: %q, index: \"https://me:hidden@127.0.0.1/simple\"}]", b.echo("1.0"))), PlanOptions{})
	raw, err := os.ReadFile(filepath.Join(r.Dir, plugins.EnvRecordFile))
	require.NoError(t, err)
	assert.NotContains(t, string(raw), "hidden", "a password of the index is not kept")
	var rec plugins.EnvRecord
	require.NoError(t, json.Unmarshal(raw, &rec))
	assert.Equal(t, r.Python, rec.Python)
	assert.FileExists(t, rec.Base)
	assert.Equal(t, filepath.Join(b.dir, "plugins.yaml"), rec.Source)
	assert.Equal(t, plugins.LockHash(rec.Lock), rec.LockHash)
}
