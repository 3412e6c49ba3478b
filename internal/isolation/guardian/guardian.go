// Package guardian is the process that ends the workers when the daemon dies
// without being able to: it waits for end of file on its standard input, whose
// other end only the daemon holds, and then empties the cgroup it was given.
package guardian

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/isolation/tree"
)

// Main runs the hidden verb "worker-guardian" and returns the exit code.
func Main(args []string) int {
	fs := flag.NewFlagSet(tree.VerbGuardian, flag.ContinueOnError)
	dir := fs.String("cgroup", "", "cgroup v2 directory to empty and remove")
	if err := fs.Parse(args); err != nil || *dir == "" {
		fmt.Fprintln(os.Stderr, "usage: worker-guardian --cgroup DIR  (ends with its standard input)")
		return 2
	}
	// Ended politely together with the daemon's group, it could not do its work.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	_, _ = io.Copy(io.Discard, os.Stdin) // any end of it means the same
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := tree.EmptyCgroup(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
