// Command cjmd is the daemon: it reads its configuration, builds everything in
// one visible order (assemble.go), runs it, and takes it down in the order that
// docs/ARCHITECTURE.md gives. It decides nothing itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/execworker"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/manpages"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
	"github.com/cjmd/cjmd/internal/simserve"
)

// Set by the linker (Makefile).
var (
	version = "devel"
	commit  = "unknown"
	date    = "unknown"
)

// exitError carries an exit code through cobra; its text is already printed.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func main() {
	// The re-exec verbs run once per worker: they go past the command line
	// parser, which would cost a tenth of a worker's start.
	if code, ok := reexec.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if code, ok := nvidia.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if len(os.Args) > 1 && os.Args[1] == simserve.Verb {
		os.Exit(simserve.Worker(os.Environ(), os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == execworker.Verb {
		os.Exit(execworker.Main(os.Args[2:], os.Stderr))
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// run is the whole program but for the process: it returns the exit code. The
// daemon also ends, as by a first signal, when ctx does.
func run(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "cjmd",
		Short:         "Job server for one GPU box",
		Long:          "cjmd runs plugins in isolated worker processes behind a durable, resource-aware queue.\nWithout a verb it serves.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       fmt.Sprintf("%s (commit %s, %s)", version, commit, date),
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	serve := serveCommand(env)
	root.AddCommand(serve, simulateCommand(), configCommand(env), workerCheckCommand(), manpages.Command(version))
	root.Args = cobra.NoArgs
	root.Flags().AddFlagSet(serve.Flags())
	root.RunE = serve.RunE

	err := root.ExecuteContext(ctx)
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	default:
		fmt.Fprintf(stderr, "cjmd: %v\n", err)
		return 1
	}
}
