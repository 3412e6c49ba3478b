package rows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
)

// olderBase is a release of the Python system's base library, whose own HTTP
// worker is measured. Its environment is made from a lock of test/ecosystem.
type olderBase struct {
	name, lock, needs string // needs: the least Python, as a tuple
}

var olderBases = []olderBase{
	{"plugin-system 0.0.23", "plugin-system-0.0.23", "(3, 11)"},
	{"substrate 0.0.74", "substrate-0.0.74", "(3, 12)"},
}

// older: the same plugin, interpreter and daemon, once on the native runtime and
// once on the HTTP worker of an older base library (runtime: http). Not in the
// quick run: it installs packages.
func older(ctx context.Context, b *harness.Bench) ([]harness.Result, error) {
	if b.Quick {
		return nil, nil
	}
	var out []harness.Result
	for _, base := range olderBases {
		python, err := makeOlder(ctx, b, base)
		if err != nil {
			return nil, err
		}
		if python == "" {
			b.Note("older: %s is left out: it needs Python %s, and python3 is older (ECOSYSTEM_PYTHON names another)", base.name, base.needs)
			continue
		}
		got, err := measureOlder(ctx, b, base, python)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", base.name, err)
		}
		out = append(out, got...)
	}
	return out, nil
}

// makeOlder makes the environment and returns its interpreter; "" where there is
// no Python for it.
func makeOlder(ctx context.Context, b *harness.Bench, base olderBase) (string, error) {
	from := b.Python
	if other := os.Getenv("ECOSYSTEM_PYTHON"); other != "" {
		from = other
	}
	if run(ctx, from, "-c", "import sys, venv; sys.exit(sys.version_info < "+base.needs+")") != nil {
		return "", nil
	}
	dir, err := b.TempDir("older")
	if err != nil {
		return "", fmt.Errorf("cannot make an environment: %w", err)
	}
	python := filepath.Join(dir, "bin", "python")
	lock := filepath.Join(b.Repo, "test", "ecosystem", "locks", base.lock+".txt")
	for _, line := range [][]string{
		{from, "-m", "venv", dir},
		{python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", lock},
	} {
		if err := run(ctx, line[0], line[1:]...); err != nil {
			return "", fmt.Errorf("cannot make the environment: %w", err)
		}
	}
	return python, nil
}

// runtimes are what is compared; the first is ours.
var runtimes = []string{"native", "http"}

func measureOlder(ctx context.Context, b *harness.Bench, base olderBase, python string) (_ []harness.Result, err error) {
	dir, err := olderManifests(b, python)
	if err != nil {
		return nil, err
	}
	d, err := b.Daemon(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	seen := map[string]*olderFigures{"native": {}, "http": {}}
	for i := range 6 { // the first is for warming up
		for _, runtime := range runtimes {
			f := seen[runtime]
			if i == 0 {
				f = &olderFigures{}
			}
			if err := f.measure(ctx, d, runtime); err != nil {
				return nil, fmt.Errorf("%s: %w", runtime, err)
			}
		}
	}
	ours, theirs := seen["native"], seen["http"]
	row := func(metric, unit string, ours, theirs []float64) harness.Result {
		return harness.Of("older", base.name+": "+metric, harness.Median(ours), unit).Against("its own worker, "+unit, harness.Median(theirs))
	}
	return []harness.Result{
		row("request to ready: p50", "ms", ours.load, theirs.load),
		row("execute, 1 client: p50", "ms", ours.call, theirs.call),
		row("chunks", "1/s", ours.chunks, theirs.chunks),
		row("memory of the worker", "MiB", ours.rss, theirs.rss),
	}, nil
}

// olderManifests describes the benchmarks' plugins on both runtimes with the same
// interpreter.
func olderManifests(b *harness.Bench, python string) (string, error) {
	dir, err := b.TempDir("manifests")
	if err != nil {
		return "", fmt.Errorf("cannot make a directory: %w", err)
	}
	for _, runtime := range runtimes {
		for plugin, class := range map[string]string{"noop": "Noop", "chunks": "Chunks"} {
			name := plugin + "-" + runtime
			text, err := json.Marshal(map[string]any{"format_version": "3", "name": name, "version": "1.0.0", "runtime": runtime,
				"module": "bench_older", "class": class, "path": []string{b.PluginDir("older"), b.PluginDir("noop"), b.PluginDir("chunks")}, "python_path": python})
			if err != nil {
				return "", fmt.Errorf("cannot encode a manifest: %w", err)
			}
			if err := os.WriteFile(filepath.Join(dir, name+".json"), text, 0o644); err != nil {
				return "", fmt.Errorf("cannot write a manifest: %w", err)
			}
		}
	}
	return dir, nil
}

// olderFigures are the repeats on one runtime.
type olderFigures struct{ load, call, chunks, rss []float64 }

// measure loads, calls, streams, looks and unloads.
func (f *olderFigures) measure(ctx context.Context, d *harness.Daemon, runtime string) error {
	noop, chunks := "noop-"+runtime, "chunks-"+runtime
	begin := time.Now()
	if err := d.Call(ctx, "POST", "/v1/plugins/"+noop+"/load", nil, nil); err != nil {
		return err
	}
	f.load = append(f.load, harness.Milliseconds(time.Since(begin)))
	l, err := harness.RunLoad(ctx, 1, time.Second, d.Target(harness.Request("POST", "/v1/plugins/"+noop+"/execute", "", []byte(executeBody)), 200))
	if err != nil {
		return err
	}
	f.call = append(f.call, harness.Milliseconds(l.P50))
	var worker struct {
		PID int `json:"pid"`
	}
	if err := d.Call(ctx, "GET", "/v1/workers/"+noop, nil, &worker); err != nil {
		return err
	}
	rss, err := harness.RSS(worker.PID)
	if err != nil {
		return err
	}
	f.rss = append(f.rss, rss)
	rate, err := streamFrom(ctx, d, chunks, 5000)
	if err != nil {
		return err
	}
	f.chunks = append(f.chunks, rate)
	for _, plugin := range []string{noop, chunks} {
		if err := d.Call(ctx, "POST", "/v1/plugins/"+plugin+"/unload", nil, nil); err != nil {
			return err
		}
	}
	return nil
}
