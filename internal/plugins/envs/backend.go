package envs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Backend is one tool that makes environments. Its methods may be called from
// several goroutines for different environments; all run programs through the
// steps given and end with their context.
type Backend interface {
	// Name is one of the managers of plugins.yaml.
	Name() string
	// Probe says which tool this is and its version, or what is missing.
	Probe(ctx context.Context) (string, error)
	// Create makes an environment at dir, which does not exist, with the Python
	// that e asks for and nothing of e's packages.
	Create(ctx context.Context, s *steps, dir string, e Entry) error
	// Install puts what e asks for into the environment at dir.
	Install(ctx context.Context, s *steps, dir string, e Entry) error
}

// Backends are all there are, in the order in which one is chosen for an entry
// that names none.
func Backends(env []string) []Backend {
	look := newFinder(env)
	return []Backend{&uv{look}, &venv{look}, &conda{look, Micromamba}, &conda{look, Conda}}
}

// finder looks programs up as the user of an environment would, which need not
// be our own.
type finder struct {
	path []string
	home string
	pins []string // where versions of Python lie side by side
}

func newFinder(env []string) finder {
	var f finder
	root := ""
	for _, kv := range env {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "PATH":
			f.path = filepath.SplitList(v)
		case "HOME":
			f.home = v
		case "PYENV_ROOT":
			root = v
		}
	}
	if root == "" && f.home != "" {
		root = filepath.Join(f.home, ".pyenv")
	}
	if root != "" {
		f.pins = append(f.pins, filepath.Join(root, "versions", "%s*", "bin", "python3"))
	}
	if f.home != "" {
		f.pins = append(f.pins, filepath.Join(f.home, ".local/share/uv/python/cpython-%s*/bin/python3"))
	}
	return f
}

func (f finder) find(program string) (string, error) {
	for _, dir := range f.path {
		if !filepath.IsAbs(dir) {
			continue
		}
		if full, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s is not on the PATH", program)
}

// python finds the interpreter of a version ("" for any): on the PATH, then
// where pyenv and uv keep theirs. An absolute path is taken as it is.
func (f finder) python(ctx context.Context, env []string, want string) (string, error) {
	if filepath.IsAbs(want) {
		return want, nil
	}
	var candidates []string
	for _, name := range []string{"python" + want, "python3", "python"} {
		if p, err := f.find(name); err == nil {
			candidates = append(candidates, p)
		}
	}
	if want != "" {
		for _, pin := range f.pins {
			more, _ := filepath.Glob(fmt.Sprintf(pin, want)) // a bad pattern finds nothing
			candidates = append(candidates, more...)
		}
	}
	for _, p := range candidates {
		// Asking it, because a name on the PATH may be a signpost to nothing.
		version, err := output(ctx, env, p, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
		if err == nil && (want == "" || strings.HasPrefix(version+".", want+".")) {
			return p, nil
		}
	}
	if want == "" {
		return "", errors.New("cannot find python3 on the PATH")
	}
	return "", fmt.Errorf("cannot find Python %s on this machine: install it, give its path as python, or use env: uv, which fetches it", want)
}

// pythonIn is the interpreter of an environment: all tools agree on its place.
func pythonIn(dir string) string { return filepath.Join(dir, "bin", "python") }

// output runs a short program for one line of answer.
func output(ctx context.Context, env []string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	out, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			return "", fmt.Errorf("%s: %s", argv[0], lastLine(string(exit.Stderr)))
		}
		return "", fmt.Errorf("%s: %w", argv[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// words are the packages of e for pip and uv, which take the same ones.
func (e Entry) words() []string {
	var out []string
	for _, f := range e.ReqFiles {
		out = append(out, "-r", f)
	}
	for _, r := range e.Requirements {
		out = append(out, r.args()...)
	}
	if e.Package != nil {
		out = append(out, e.Package.args()...)
	}
	return out
}

// pipRounds are the installations that e asks for, each as arguments of pip or
// uv pip install. What a lock holds is installed as it is; what stands beside it
// may then bring nothing along.
func (e Entry) pipRounds(indexFlag string) [][]string {
	var common []string
	if e.Index != "" {
		common = []string{indexFlag, e.Index}
	}
	var rounds [][]string
	if e.Lock != "" {
		common = append(common, "--no-deps")
		rounds = append(rounds, append(append([]string{}, common...), "-r", e.Lock))
	}
	if w := e.words(); len(w) > 0 {
		rounds = append(rounds, append(append([]string{}, common...), w...))
	}
	return rounds
}

// uv is Astral's tool: a Python that is not here it fetches by itself.
type uv struct{ finder }

func (u *uv) Name() string { return UV }

func (u *uv) Probe(ctx context.Context) (string, error) {
	tool, err := u.find("uv")
	if err != nil {
		return "", err
	}
	return output(ctx, os.Environ(), tool, "--version")
}

func (u *uv) Create(ctx context.Context, s *steps, dir string, e Entry) error {
	tool, err := u.find("uv")
	if err != nil {
		return err
	}
	argv := []string{tool, "venv", "--no-project"}
	if e.Python != "" {
		python, err := u.python(ctx, s.env, e.Python)
		if err != nil {
			python = e.Python
		}
		argv = append(argv, "--python", python)
	}
	return s.run(ctx, "make the environment", append(argv, dir))
}

func (u *uv) Install(ctx context.Context, s *steps, dir string, e Entry) error {
	tool, err := u.find("uv")
	if err != nil {
		return err
	}
	for _, round := range e.pipRounds("--default-index") {
		argv := append([]string{tool, "pip", "install", "--python", pythonIn(dir)}, round...)
		if err := s.run(ctx, "install its packages", argv); err != nil {
			return err
		}
	}
	return nil
}

// venv is the standard library's module with pip.
type venv struct{ finder }

func (v *venv) Name() string { return Venv }

func (v *venv) Probe(ctx context.Context) (string, error) {
	python, err := v.find("python3")
	if err != nil {
		return "", err
	}
	version, err := output(ctx, os.Environ(), python, "-c", "import venv, ensurepip, sys; print(sys.version.split()[0])")
	if err != nil {
		return "", fmt.Errorf("venv and pip do not come with this Python (Debian: apt install python3-venv): %w", err)
	}
	return "venv of Python " + version, nil
}

func (v *venv) Create(ctx context.Context, s *steps, dir string, e Entry) error {
	python, err := v.python(ctx, s.env, e.Python)
	if err != nil {
		return err
	}
	return s.run(ctx, "make the environment", []string{python, "-m", "venv", dir})
}

func (v *venv) Install(ctx context.Context, s *steps, dir string, e Entry) error {
	return pipInstall(ctx, s, dir, e)
}

func pipInstall(ctx context.Context, s *steps, dir string, e Entry) error {
	for _, round := range e.pipRounds("--index-url") {
		argv := append([]string{pythonIn(dir), "-m", "pip", "install", "--no-input", "--progress-bar", "off"}, round...)
		if err := s.run(ctx, "install its packages", argv); err != nil {
			return err
		}
	}
	return nil
}

// conda is conda, or micromamba, which takes nearly the same words; packages of
// the index are pip's.
type conda struct {
	finder
	name string
}

func (c *conda) Name() string { return c.name }

func (c *conda) Probe(ctx context.Context) (string, error) {
	tool, err := c.find(c.name)
	if err != nil {
		return "", err
	}
	version, err := output(ctx, os.Environ(), tool, "--version")
	return c.name + " " + strings.TrimPrefix(version, c.name+" "), err
}

func (c *conda) Create(ctx context.Context, s *steps, dir string, e Entry) error {
	tool, err := c.find(c.name)
	if err != nil {
		return err
	}
	file := e.EnvFile
	if strings.Contains(file, "://") {
		if file, err = fetch(ctx, file, filepath.Join(s.dir, filepath.Base(dir)+".yml")); err != nil {
			return err
		}
		defer os.Remove(file)
	}
	var argv []string
	switch {
	case file != "" && c.name == Conda:
		argv = []string{tool, "env", "create", "--quiet", "--prefix", dir, "--file", file}
	case file != "":
		argv = []string{tool, "create", "--yes", "--quiet", "--prefix", dir, "--file", file}
	default:
		python := "python"
		if e.Python != "" {
			python += "=" + e.Python
		}
		argv = []string{tool, "create", "--yes", "--quiet", "--prefix", dir, python, "pip"}
		if c.name == Micromamba { // conda has its own default channels
			argv = append(argv, "--channel", "conda-forge")
		}
	}
	if err := s.run(ctx, "make the environment", argv); err != nil {
		return err
	}
	if _, err := os.Stat(pythonIn(dir)); err != nil {
		return errors.New("cannot use the environment: its env_file installs no Python")
	}
	return nil
}

func (c *conda) Install(ctx context.Context, s *steps, dir string, e Entry) error {
	return pipInstall(ctx, s, dir, e)
}
