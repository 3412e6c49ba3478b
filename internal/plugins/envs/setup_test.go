package envs

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// uvCache is uv's for all tests: with a cold one each of them asks every
// interpreter of the machine what it is.
var uvCache string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cjm-envs-test-*")
	if err != nil {
		panic(err)
	}
	uvCache = dir
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// bench is one installer in directories of its own. Nothing here needs a
// package index: what is installed are wheels that the tests make.
type bench struct {
	t   *testing.T
	dir string
	in  *Installer

	mu      sync.Mutex
	updates []Update
}

func setup(t *testing.T, backends ...Backend) *bench {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	b := &bench{t: t, dir: dir}
	env := append(os.Environ(), "UV_OFFLINE=1", "UV_HTTP_RETRIES=0", "PIP_RETRIES=0", "PIP_TIMEOUT=10", "UV_CACHE_DIR="+uvCache, "PIP_NO_CACHE_DIR=1")
	if backends == nil {
		backends = []Backend{newUnpacker(t)}
	}
	b.in, err = New(Options{
		Envs: filepath.Join(dir, "envs"), Manifests: filepath.Join(dir, "manifests"), Logs: filepath.Join(dir, "logs"),
		Env: env, Backends: backends, Version: "test", Waits: []time.Duration{time.Millisecond, time.Millisecond},
	})
	require.NoError(t, err)
	return b
}

// unpacker is a backend for the tests of everything around backends: a bare venv
// and wheels unpacked by hand, in a tenth of the time that uv or pip take.
type unpacker struct{ python string }

func newUnpacker(t *testing.T) *unpacker {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err == nil {
		err = exec.Command(python, "-c", "import venv").Run()
	}
	if err != nil {
		t.Skipf("there is no python3 with venv here: %v", err)
	}
	return &unpacker{python}
}

func (u *unpacker) Name() string                          { return UV }
func (u *unpacker) Probe(context.Context) (string, error) { return "unpacker 1", nil }

func (u *unpacker) Create(ctx context.Context, s *steps, dir string, _ Entry) error {
	return s.run(ctx, "make the environment", []string{u.python, "-m", "venv", "--without-pip", dir})
}

func (u *unpacker) Install(ctx context.Context, s *steps, dir string, e Entry) error {
	site, err := filepath.Glob(filepath.Join(dir, "lib", "python*", "site-packages"))
	if err != nil || len(site) != 1 {
		return fmt.Errorf("cannot find site-packages: %v %w", site, err)
	}
	for _, word := range e.words() {
		if !strings.HasSuffix(word, ".whl") {
			return s.run(ctx, "install its packages", []string{u.python, "-c", "import sys; sys.exit('no such package: ' + sys.argv[1])", word})
		}
		name, version, _ := strings.Cut(filepath.Base(word), "-")
		version, _, _ = strings.Cut(version, "-")
		z, err := zip.OpenReader(word)
		if err != nil {
			return err
		}
		direct := filepath.Join(site[0], name+"-"+version+".dist-info", "direct_url.json")
		err = errors.Join(os.CopyFS(site[0], z), z.Close(), os.WriteFile(direct, fmt.Appendf(nil, `{"url": "file://%s"}`, word), 0o644))
		if err != nil {
			return err
		}
	}
	return nil
}

// realTool is uv, or else venv with pip, for what only they can show.
func realTool(t *testing.T, env []string) Backend {
	t.Helper()
	for _, b := range Backends(env)[:2] {
		if _, err := b.Probe(t.Context()); err == nil {
			return b
		}
	}
	t.Skip("neither uv nor Python with venv and pip is here")
	return nil
}

func (b *bench) file(content string) *File {
	b.t.Helper()
	f, err := ReadFile(write(b.t, b.dir, "plugins.yaml", content))
	require.NoError(b.t, err)
	return f
}

func (b *bench) plan(f *File, o PlanOptions) []Task {
	b.t.Helper()
	tasks, err := b.in.Plan(b.t.Context(), f, o)
	require.NoError(b.t, err)
	return tasks
}

func (b *bench) report(u Update) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.updates = append(b.updates, u)
}

// install plans and does everything in f.
func (b *bench) install(f *File, o PlanOptions) []Result {
	b.t.Helper()
	return b.in.Install(b.t.Context(), b.plan(f, o), b.report)
}

// mustInstall is install of one entry that has to work.
func (b *bench) mustInstall(f *File, o PlanOptions) Result {
	b.t.Helper()
	r := b.install(f, o)
	require.Len(b.t, r, 1)
	if r[0].Err != nil {
		log, _ := os.ReadFile(r[0].Log)
		b.t.Fatalf("%v\n%s", r[0].Err, log)
	}
	return r[0]
}

// wheel makes a wheel of these files and returns its path.
func (b *bench) wheel(name, version string, files map[string]string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, "wheels", fmt.Sprintf("%s-%s-py3-none-any.whl", name, version))
	require.NoError(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	out, err := os.Create(path)
	require.NoError(b.t, err)
	z := zip.NewWriter(out)
	info := fmt.Sprintf("%s-%s.dist-info/", name, version)
	all := maps.Clone(files)
	all[info+"METADATA"] = fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\nSummary: Made by a test\n", strings.ReplaceAll(name, "_", "-"), version)
	all[info+"WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
	var record strings.Builder
	for _, file := range slices.Sorted(maps.Keys(all)) {
		sum := sha256.Sum256([]byte(all[file]))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", file, base64.RawURLEncoding.EncodeToString(sum[:]), len(all[file]))
		w, err := z.Create(file)
		require.NoError(b.t, err)
		_, err = w.Write([]byte(all[file]))
		require.NoError(b.t, err)
	}
	fmt.Fprintf(&record, "%sRECORD,,\n", info)
	w, err := z.Create(info + "RECORD")
	require.NoError(b.t, err)
	_, err = w.Write([]byte(record.String()))
	require.NoError(b.t, err)
	require.NoError(b.t, z.Close())
	require.NoError(b.t, out.Close())
	return path
}

const echoPlugin = `
class Echo:
    """Gives back what it gets."""
    name = "echo"
    def execute(self, text="hello"):
        return text
    def get_config_schema(self):
        return {"type": "object", "properties": {"loud": {"type": "boolean", "default": False}}}
`

func (b *bench) echo(version string) string {
	return b.wheel("echo_plugin", version, map[string]string{"echo_plugin/__init__.py": "", "echo_plugin/plugin.py": echoPlugin})
}
