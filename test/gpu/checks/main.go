// Command checks proves on a machine with NVIDIA GPUs what the simulator and
// the mocked driver cannot: that memory is attributed, admitted, evicted and
// seen back as the scheduler believes. It starts the real daemon in a private
// directory, drives it through its API, and reads the driver itself, beside it.
// It ends every process that it started. Start with run, then list (list.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitPassed = 0
	exitFailed = 1 // a check failed, or the checks could not be carried out
	exitUsage  = 2
	exitNoGPU  = 3 // nothing to check here: no GPU, no driver, or no torch
)

// version is set by the linker.
var version = "unknown"

// patience bounds the whole run.
const patience = 25 * time.Minute

type options struct {
	cjmd    string
	plugins string
	config  string
	python  string
	path    string // one more directory of Python modules
	out     string
	only    string
	late    time.Duration
	keep    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	fs := flag.NewFlagSet("checks", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.cjmd, "cjmd", "bin/cjmd", "the daemon")
	fs.StringVar(&o.plugins, "plugins", "plugins", "directory with gpu_plugin.py")
	fs.StringVar(&o.config, "config", "cjmd.yaml", "the daemon's configuration")
	fs.StringVar(&o.python, "python", "python3", "interpreter that has torch")
	fs.StringVar(&o.path, "path", "", "one more directory of Python modules")
	fs.StringVar(&o.out, "out", "gpu-results.json", "where the results are written as JSON; a table goes beside it as Markdown")
	fs.StringVar(&o.only, "only", "", "names of checks, separated by commas; all when empty")
	fs.DurationVar(&o.late, "late", 250*time.Millisecond, "how long after memory is back the next worker may start")
	fs.BoolVar(&o.keep, "keep", false, "keep the daemon's directory, with its logs")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitPassed
	case err != nil:
		return exitUsage
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the checks took longer than %v", patience))
	defer cancel()
	return carryOut(ctx, o, stdout, stderr)
}

// carryOut looks at the machine, runs the checks and reports.
func carryOut(ctx context.Context, o options, stdout, stderr io.Writer) int {
	checks, err := choose(o.only)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return exitUsage
	}
	m, err := look(ctx, o)
	var absent *absentError
	if errors.As(err, &absent) {
		_, _ = fmt.Fprintf(stderr, "Nothing was checked: %v.\n", err)
		return exitNoGPU
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return exitFailed
	}
	defer m.close()
	r := newReport(m)
	s, err := open(ctx, o, m, stderr)
	if err == nil {
		for _, c := range checks {
			r.add(s.carryOut(ctx, c))
		}
		err = s.close()
	}
	if err != nil {
		r.add(result{Check: "the checks themselves", Expected: "carried out to the end", Seen: err.Error(), Verdict: failed})
	}
	if err := r.write(stdout, o.out); err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return exitFailed
	}
	if !r.passed() {
		return exitFailed
	}
	return exitPassed
}
