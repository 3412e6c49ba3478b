package envs

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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

// standIn is conda or micromamba as far as this package talks to it: it makes a
// venv where it is told to, with a pip that only unpacks, and notes its words.
const standIn = `#!/bin/sh
if [ "$1" = --version ]; then echo "NAME 1.2.3"; exit; fi
echo "$*" >> "$0.words"
while [ $# -gt 0 ]; do
  case "$1" in
    --prefix) prefix=$2; shift;;
    --file) file=$2; grep -q python "$file" || exit 3; shift;;
    python=3.99) echo "PackagesNotFoundError: python=3.99" >&2; exit 1;;
  esac
  shift
done
python3 -m venv --without-pip "$prefix" || exit
site=$(echo "$prefix"/lib/python3*/site-packages)
mkdir "$site/pip" && cat > "$site/pip/__main__.py" <<'.'
import sys, sysconfig, zipfile
zipfile.ZipFile(sys.argv[-1]).extractall(sysconfig.get_paths()["purelib"])
.
`

// The conda family is seldom on a test machine: what it is told, and what is
// made of its answers, is held here with a stand-in.
func TestBackends_CondaFamilySaysTheRightWords(t *testing.T) {
	t.Parallel()
	if err := exec.Command("python3", "-c", "import venv").Run(); err != nil {
		t.Skipf("the stand-in makes a venv, which cannot be had here: %v", err)
	}
	for _, c := range []struct{ name, fromFile, plain string }{
		{Conda, "env create --quiet --prefix DIR --file FILE", "create --yes --quiet --prefix DIR python=3.99 pip"},
		{Micromamba, "create --yes --quiet --prefix DIR --file FILE", "create --yes --quiet --prefix DIR python=3.99 pip --channel conda-forge"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			bin := write(t, b.dir, "bin/"+c.name, strings.ReplaceAll(standIn, "NAME", c.name))
			require.NoError(t, os.Chmod(bin, 0o755))
			b.in.o.Env = append(b.in.o.Env, "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"))
			b.in.o.Backends = Backends(b.in.o.Env)
			file := write(t, b.dir, "environment.yml", "dependencies: [python=3.11]\n")

			f := b.file(fmt.Sprintf("plugins: [{name: echo, env: %s, env_file: environment.yml, package: %q}]", c.name, b.echo("1.0")))
			r := b.mustInstall(f, PlanOptions{})
			assert.Equal(t, c.name+" 1.2.3", r.Tool)
			words, err := os.ReadFile(bin + ".words")
			require.NoError(t, err)
			want := strings.NewReplacer("DIR", r.Dir, "FILE", file).Replace(c.fromFile)
			assert.Equal(t, want+"\n", string(words))

			plain := b.file(fmt.Sprintf("plugins: [{name: other, env: %s, python: 3.99, package: a}]", c.name))
			failed := b.install(plain, PlanOptions{})[0]
			var fail *StepError
			require.ErrorAs(t, failed.Err, &fail)
			assert.Equal(t, []string{"PackagesNotFoundError: python=3.99"}, fail.Tail)
			words, err = os.ReadFile(bin + ".words")
			require.NoError(t, err)
			said := regexp.MustCompile(`--prefix \S+`).ReplaceAllString(strings.Split(string(words), "\n")[1], "--prefix DIR")
			assert.Equal(t, c.plain, said)
		})
	}
}
