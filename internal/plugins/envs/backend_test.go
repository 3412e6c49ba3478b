package envs

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/plugins"
)

// What every backend promises. A tool that is not here is skipped with its own words.
func TestBackends_Conform(t *testing.T) {
	for _, backend := range Backends(os.Environ()) {
		t.Run(backend.Name(), func(t *testing.T) {
			t.Parallel()
			version, err := backend.Probe(t.Context())
			if err != nil {
				t.Skipf("%s is not here: %v", backend.Name(), err)
			}
			t.Logf("with %s", version)
			b := setup(t, backend)
			s := &steps{env: toolEnv(b.in.o.Env), dir: b.dir, log: io.Discard}
			dir := filepath.Join(b.dir, "env with blanks; $(touch pwned)")
			e := Entry{Name: "echo", EnvName: "echo", Dialect: DialectPlugins}
			plugin, err := parseRequirement(b.echo("1.0"), b.dir)
			require.NoError(t, err)
			e.Package = &plugin

			require.NoError(t, backend.Create(t.Context(), s, dir, e))
			require.FileExists(t, pythonIn(dir))
			before, err := plugins.ReadLock(dir)
			require.NoError(t, err)
			assert.NotContains(t, before, "echo-plugin", "Create installs no package")

			require.NoError(t, backend.Install(t.Context(), s, dir, e))
			after, err := plugins.ReadLock(dir)
			require.NoError(t, err)
			assert.Contains(t, plugins.LockChanges(before, after), "echo-plugin==1.0 @ file://"+plugin.Path+" was added")
			out, err := exec.Command(pythonIn(dir), "-c", "import echo_plugin.plugin, sys; print(sys.prefix)").Output()
			require.NoError(t, err)
			assert.Equal(t, dir+"\n", string(out), "its interpreter is the environment's")
			_, err = os.Stat(filepath.Join(b.dir, "pwned"))
			assert.ErrorIs(t, err, os.ErrNotExist, "no shell was asked")

			bad := e
			bad.Package = &Requirement{Text: "x", Arg: filepath.Join(b.dir, "no-such.whl")}
			err = backend.Install(t.Context(), s, dir, bad)
			var fail *StepError
			require.ErrorAs(t, err, &fail)
			assert.NotEmpty(t, fail.Tail, "the tool's own words")
			assert.False(t, fail.Network)

			bad = e
			bad.Python = "3.99"
			require.Error(t, backend.Create(t.Context(), s, filepath.Join(b.dir, "no-such-python"), bad))
		})
	}
}

func TestBackends_ChosenByWhatIsHere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "uv", "#!/bin/sh\necho uv 9.9\n")
	require.NoError(t, os.Chmod(filepath.Join(dir, "uv"), 0o755))
	plan := func(path, yaml string) Task {
		in, err := New(Options{Envs: dir, Manifests: dir, Logs: dir, Env: []string{"PATH=" + path}})
		require.NoError(t, err)
		write(t, dir, "environment.yml", "dependencies: [python]\n")
		f, err := ReadFile(write(t, t.TempDir(), "plugins.yaml", yaml))
		require.NoError(t, err)
		tasks, err := in.Plan(t.Context(), f, PlanOptions{})
		require.NoError(t, err)
		return tasks[0]
	}
	assert.Equal(t, "uv 9.9", plan(dir, "plugins: [{name: a, package: a}]").Tool)
	none := plan("/nowhere", "plugins: [{name: a, package: a}]")
	require.ErrorContains(t, none.Err, `cannot make the environment of "a": it needs uv (uv is not on the PATH) or venv (`)
	family := plan(dir, "plugins: [{name: a, package: a, env_file: "+filepath.Join(dir, "environment.yml")+"}]")
	require.ErrorContains(t, family.Err, "it needs micromamba (micromamba is not on the PATH) or conda (conda is not on the PATH)")
}
