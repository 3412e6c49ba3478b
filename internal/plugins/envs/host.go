package envs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// baseLibraries are what the Python system's own host brought along.
var baseLibraries = []string{"cjm-plugin-system", "cjm-substrate"}

// HostRequirements are the interface libraries of all entries, each once, for
// the program that talks to the plugins.
func HostRequirements(f *File) []Requirement {
	var out []Requirement
	for _, e := range f.Entries {
		for _, r := range e.Interfaces {
			known := slices.ContainsFunc(out, func(o Requirement) bool { return o.Arg == r.Arg })
			base := slices.Contains(baseLibraries, strings.ReplaceAll(strings.ToLower(r.Name), "_", "-"))
			if !known && !base {
				out = append(out, r)
			}
		}
	}
	return out
}

// SetupHost installs packages into an interpreter that is not ours, with uv or
// its own pip. What the tool says goes to log. *StepError.
func (in *Installer) SetupHost(ctx context.Context, python string, reqs []Requirement, log io.Writer) error {
	s := &steps{env: toolEnv(in.o.Env), log: log}
	e := Entry{Requirements: reqs}
	argv := []string{python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"}
	for _, b := range in.o.Backends {
		if u, ok := b.(*uv); ok {
			if tool, err := u.find("uv"); err == nil {
				argv = []string{tool, "pip", "install", "--python", python}
			}
		}
	}
	if len(reqs) == 0 {
		return errors.New("cannot set up the host: nothing is to be installed")
	}
	if _, err := output(ctx, s.env, python, "-c", "import sys"); err != nil {
		return fmt.Errorf("cannot use that interpreter: %w", err)
	}
	return withRetries(ctx, in.o.Waits, func(n int, _ time.Duration) { fmt.Fprintf(log, "the network failed; attempt %d\n", n+1) },
		func() error { return s.run(ctx, "install the interface libraries", append(argv, e.words()...)) })
}
