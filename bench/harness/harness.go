// Package harness is what the benchmarks share: the real cjmd in a private
// directory (daemon.go), a client that costs less than what it measures
// (http.go), the raw limits to put beside it (raw.go), statistics, and the
// results as table and JSON (report.go). Nothing here outlives the Bench: Close
// ends every process and removes every file. Start with Open.
package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options of a Bench.
type Options struct {
	Repo  string    // the checkout: plugins are read from it, cjmd is built from it
	CJMD  string    // a daemon built before; "" builds one
	Quick bool      // short repeats
	Log   io.Writer // progress, for people
}

// Bench is one run of the benchmarks. Rows use it one after the other.
type Bench struct {
	Quick  bool
	Repo   string // the checkout
	Python string // the interpreter itself, not a shim that starts one

	log     io.Writer
	dir     string
	cjmd    string
	plugins string
	sdk     string
	daemons int
}

// Open finds Python and builds the daemon in a private directory.
func Open(ctx context.Context, o Options) (_ *Bench, err error) {
	repo, err := filepath.Abs(o.Repo)
	if err != nil {
		return nil, fmt.Errorf("cannot find the checkout %q: %w", o.Repo, err)
	}
	dir, err := os.MkdirTemp("", "cjmd-bench-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a private directory: %w", err)
	}
	b := &Bench{Quick: o.Quick, Repo: repo, log: o.Log, dir: dir, cjmd: o.CJMD, plugins: filepath.Join(repo, "bench", "plugins"), sdk: filepath.Join(repo, "sdk", "python")}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	out, err := exec.CommandContext(ctx, "python3", "-c", "import os, sys; print(os.path.realpath(sys.executable))").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot find Python: %w", err)
	}
	b.Python = strings.TrimSpace(string(out))
	if b.cjmd != "" {
		b.cjmd, err = filepath.Abs(b.cjmd)
		return b, err
	}
	b.cjmd = filepath.Join(dir, "cjmd")
	b.Note("building cjmd")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.cjmd, "./cmd/cjmd")
	build.Dir = repo
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot build cjmd: %w\n%s", err, text)
	}
	return b, nil
}

// Close removes what the run wrote.
func (b *Bench) Close() error { return os.RemoveAll(b.dir) }

// Note tells people what is going on.
func (b *Bench) Note(format string, args ...any) { _, _ = fmt.Fprintf(b.log, format+"\n", args...) }

// For is how long one repeat of a measurement takes.
func (b *Bench) For(quick, long time.Duration) time.Duration {
	if b.Quick {
		return quick
	}
	return long
}

// Times is how often a measurement is repeated.
func (b *Bench) Times(quick, long int) int {
	if b.Quick {
		return quick
	}
	return long
}

// TempDir makes a directory that Close removes.
func (b *Bench) TempDir(name string) (string, error) { return os.MkdirTemp(b.dir, name+"-") }

// PluginDir is where the code of a plugin of the benchmarks lies.
func (b *Bench) PluginDir(name string) string { return filepath.Join(b.plugins, name) }
