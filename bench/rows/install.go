package rows

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/bench/harness"
)

// installed are the examples whose environments are made: all but torch-burn,
// which is 3 GB.
var installed = []string{"speech", "whisper", "vad", "ocr", "filetype", "embed", "ffmpeg"}

// install: the environments of seven examples by cjm-ctl install-all, beside the
// same uv commands one after the other, and beside venv and pip. uv has its
// packages in its cache, which the first round fills; pip, which is slow, has one
// round. Not in the quick run.
func install(ctx context.Context, b *harness.Bench) ([]harness.Result, error) {
	if b.Quick {
		return nil, nil
	}
	uv, err := exec.LookPath("uv")
	if err != nil || run(ctx, uv, "--version") != nil {
		b.Note("install: left out: there is no uv here")
		return nil, nil
	}
	dir, err := b.TempDir("install")
	if err != nil {
		return nil, fmt.Errorf("cannot make a directory: %w", err)
	}
	ctl := filepath.Join(dir, "cjm-ctl")
	if err := run(ctx, "go", "build", "-C", b.Repo, "-o", ctl, "./cmd/cjm-ctl"); err != nil {
		return nil, err
	}
	packages, err := examplePackages(b)
	if err != nil {
		return nil, err
	}
	ways := []struct {
		seconds []float64
		make    func(dir string) error
	}{
		{make: func(dir string) error {
			return run(ctx, ctl, "install-all", "-f", filepath.Join(b.Repo, "examples", "plugins.yaml"), "--only", strings.Join(installed, ","), "--state-dir", dir)
		}},
		{make: func(dir string) error { return eachByUV(ctx, uv, b.Python, dir, packages) }},
		{make: func(dir string) error { return eachByPip(ctx, b.Python, dir, packages) }},
	}
	for round := range 4 {
		for i := range ways {
			if i == 2 && round != 1 {
				continue
			}
			at := filepath.Join(dir, "made")
			begin := time.Now()
			if err := ways[i].make(at); err != nil {
				return nil, err
			}
			if round > 0 {
				ways[i].seconds = append(ways[i].seconds, time.Since(begin).Seconds())
			}
			if err := os.RemoveAll(at); err != nil {
				return nil, fmt.Errorf("cannot remove what was installed: %w", err)
			}
		}
	}
	all := harness.Median(ways[0].seconds)
	return []harness.Result{
		harness.Of("install", "install-all of seven examples", all, "s").Against("uv by hand, s", harness.Median(ways[1].seconds)).RatioAtMost(1.1),
		harness.Of("install", "install-all of seven examples", all, "s").Against("venv and pip, s", harness.Median(ways[2].seconds)),
	}, nil
}

// examplePackages are what the examples' manifests ask for.
func examplePackages(b *harness.Bench) (map[string][]string, error) {
	out := map[string][]string{}
	for _, name := range installed {
		text, err := os.ReadFile(filepath.Join(b.Repo, "examples", "plugins", name, "manifest.yaml"))
		if err != nil {
			return nil, fmt.Errorf("cannot read a manifest: %w", err)
		}
		var m struct {
			Env struct{ Requirements []string }
		}
		if err := yaml.Unmarshal(text, &m); err != nil || len(m.Env.Requirements) == 0 {
			return nil, fmt.Errorf("cannot find the requirements of %s: %w", name, err)
		}
		out[name] = m.Env.Requirements
	}
	return out, nil
}

func eachByUV(ctx context.Context, uv, python, dir string, packages map[string][]string) error {
	for _, name := range installed {
		env := filepath.Join(dir, name)
		if err := run(ctx, uv, "venv", "--quiet", "--python", python, env); err != nil {
			return err
		}
		if err := run(ctx, uv, append([]string{"pip", "install", "--quiet", "--python", filepath.Join(env, "bin", "python")}, packages[name]...)...); err != nil {
			return err
		}
	}
	return nil
}

func eachByPip(ctx context.Context, python, dir string, packages map[string][]string) error {
	for _, name := range installed {
		env := filepath.Join(dir, name)
		if err := run(ctx, python, "-m", "venv", env); err != nil {
			return err
		}
		if err := run(ctx, filepath.Join(env, "bin", "python"), append([]string{"-m", "pip", "install", "--quiet", "--disable-pip-version-check"}, packages[name]...)...); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program to its end; what it said is in the error.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = withSystemCertificates(os.Environ())
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s %s: %w\n%s", program, strings.Join(args, " "), err, text)
	}
	return nil
}

// withSystemCertificates lets uv trust what the system trusts, as pip does,
// unless somebody said otherwise.
func withSystemCertificates(env []string) []string {
	if _, said := os.LookupEnv("UV_SYSTEM_CERTS"); said {
		return env
	}
	return append(env, "UV_SYSTEM_CERTS=true")
}
