package envs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/plugins"
)

func codes(findings []plugins.Finding) (out []string) {
	for _, f := range findings {
		out = append(out, f.Code)
	}
	return out
}

func TestList_TellsWhatIsInstalledAndWhatIsWrong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	none, err := b.in.List()
	require.NoError(t, err)
	assert.Empty(t, none)
	f := b.file(fmt.Sprintf("plugins: [{name: label, env_name: echo-env, package: %q}]", b.echo("1.0")))
	r := b.mustInstall(f, PlanOptions{})
	i, err := b.in.Find("label") // the plugin's name
	require.NoError(t, err)
	assert.Equal(t, "echo-env", i.Name)
	assert.Equal(t, "label", i.Entry)
	assert.Empty(t, i.Findings)
	_, err = b.in.Find("echo-en")
	require.ErrorContains(t, err, `did you mean "echo-env"?`)

	require.NoError(t, os.Remove(filepath.Join(r.Dir, "bin/python")))
	i, err = b.in.Find("echo-env")
	require.NoError(t, err)
	assert.Equal(t, []string{plugins.FindingNoProgram}, codes(i.Findings))
	tasks, err := b.in.Tasks(t.Context(), i, PlanOptions{})
	require.NoError(t, err)
	assert.Equal(t, Rebuild, tasks[0].Action)
	for _, r := range b.in.Install(t.Context(), tasks, b.report) {
		require.NoError(t, r.Err)
	}
	i, err = b.in.Find("echo-env")
	require.NoError(t, err)
	assert.Empty(t, i.Findings, "mended")

	require.NoError(t, os.Remove(f.Path))
	_, err = b.in.Tasks(t.Context(), i, PlanOptions{})
	require.ErrorContains(t, err, "it came from "+f.Path+", which is gone")
}

func TestList_PackagesAndSchemaThatChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.mustInstall(b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0"))), PlanOptions{})
	i, err := b.in.Find("echo")
	require.NoError(t, err)
	assert.Empty(t, b.in.AskCode(t.Context(), i.Plugins[0]))

	// As an upgrade by hand does it.
	site, err := filepath.Glob(filepath.Join(r.Dir, "lib/python*/site-packages"))
	require.NoError(t, err)
	require.NoError(t, os.Rename(filepath.Join(site[0], "echo_plugin-1.0.dist-info"), filepath.Join(site[0], "echo_plugin-9.dist-info")))
	require.NoError(t, os.Remove(filepath.Join(site[0], "echo_plugin/plugin.py"))) // perhaps a link into a cache
	write(t, site[0], "echo_plugin/plugin.py", "class Echo:\n    def execute(self): pass\n    def get_config_schema(self): return {'type': 'object'}\n")
	i, err = b.in.Find("echo")
	require.NoError(t, err)
	assert.Equal(t, []string{plugins.FindingPackages}, codes(i.Findings))
	assert.Equal(t, []string{plugins.FindingOtherSchema}, codes(b.in.AskCode(t.Context(), i.Plugins[0])))

	tasks, err := b.in.Tasks(t.Context(), i, PlanOptions{Regenerate: true})
	require.NoError(t, err)
	require.Equal(t, Regenerate, tasks[0].Action)
	require.NoError(t, b.in.Install(t.Context(), tasks, b.report)[0].Err)
	i, err = b.in.Find("echo")
	require.NoError(t, err)
	assert.Empty(t, i.Findings)
	assert.Empty(t, b.in.AskCode(t.Context(), i.Plugins[0]))
	assert.JSONEq(t, `{"type":"object"}`, string(i.Plugins[0].Schema))
}

func TestAskCode_ASchemaByHandCounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dep := b.wheel("dep", "1.0", map[string]string{"dep.py": "X = 1\n"})
	code := func(schema string) {
		write(t, b.dir, "plug/code/plug.py", "class Plug:\n    def execute(self): pass\n    def get_config_schema(self): return "+schema+"\n")
	}
	manifest := fmt.Sprintf("name: plug\nmodule: plug\nclass: Plug\npath: code\nenv: {requirements: [%q]}\n", dep)
	ask := func() ([]plugins.Finding, Result) {
		r := b.mustInstall(b.file("plugins: [{manifest: plug}]"), PlanOptions{Regenerate: true})
		i, err := b.in.Find("plug")
		require.NoError(t, err)
		return b.in.AskCode(t.Context(), i.Plugins[0]), r
	}
	code("{'type': 'object', 'properties': {'a': {'type': 'integer'}}}")
	write(t, b.dir, "plug/manifest.yaml", manifest)
	found, r := ask()
	assert.Empty(t, found, "the manifest leaves configurations unchecked")
	assert.Empty(t, r.Warnings)

	manifest += "config_schema: {type: object, properties: {a: {type: string}}}\n"
	write(t, b.dir, "plug/manifest.yaml", manifest)
	found, r = ask()
	require.Equal(t, []string{plugins.FindingOtherSchema}, codes(found))
	assert.Equal(t, "make config_schema of "+filepath.Join(b.dir, "plug/manifest.yaml")+" and get_config_schema() say the same", found[0].Mend,
		"writing it anew would change nothing")
	assert.Len(t, r.Warnings, 1)

	code("{'type': 'object', 'properties': {}}") // as a base class does
	found, r = ask()
	assert.Empty(t, found)
	assert.Empty(t, r.Warnings)
}

func TestRemove_LeavesNothingAndWaitsForUsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	f := b.file(fmt.Sprintf("plugins: [{name: echo, package: %q}]", b.echo("1.0")))
	r := b.mustInstall(f, PlanOptions{})
	worker := exec.Command(pythonIn(r.Dir), "-c", "import sys; print('up', flush=True); sys.stdin.read()")
	in, err := worker.StdinPipe()
	require.NoError(t, err)
	out, err := worker.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, worker.Start())
	_, err = out.Read(make([]byte, 8))
	require.NoError(t, err)

	i, err := b.in.Find("echo")
	require.NoError(t, err)
	var busy *InUseError
	require.ErrorAs(t, b.in.Remove(i), &busy)
	assert.Equal(t, []string{fmt.Sprintf("pid %d", worker.Process.Pid)}, busy.Pids)

	// A new build beside a running worker: it keeps its files.
	again := b.mustInstall(f, PlanOptions{Force: true})
	stays, err := b.in.Clean("echo")
	require.NoError(t, err)
	require.Len(t, stays, 1)
	assert.Contains(t, stays[0], r.Dir+" stays until the process that uses it ends")
	assert.FileExists(t, pythonIn(r.Dir))

	require.NoError(t, in.Close())
	require.NoError(t, worker.Wait())
	i, err = b.in.Find("echo")
	require.NoError(t, err)
	assert.Equal(t, []string{r.Dir}, i.Leftovers)
	stays, err = b.in.Clean("echo")
	require.NoError(t, err)
	assert.Empty(t, stays)
	assert.NoDirExists(t, r.Dir)
	require.NoError(t, b.in.Remove(i))
	left, err := os.ReadDir(b.in.o.Envs)
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.NoFileExists(t, again.Manifest)
}
