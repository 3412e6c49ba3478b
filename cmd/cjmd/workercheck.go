package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/workercheck"
)

// workerCheckCommand is `cjmd worker-check -- CMD…`.
func workerCheckCommand() *cobra.Command {
	o := workercheck.Options{}
	c := &cobra.Command{
		Use:   "worker-check [flags] -- COMMAND [ARG…]",
		Short: "Run the conformance suite of the worker protocol against a program",
		Long: "Starts the program as a worker, with CJM_WORKER_CHECK=1 in its environment, and checks it against docs/worker-protocol.md.\n" +
			"Exit code 0 when every check that applies passes.",
		Args: cobra.MinimumNArgs(1),
	}
	c.Flags().BoolVar(&o.JSON, "json", false, "print JSON")
	c.Flags().DurationVar(&o.Timeout, "timeout", 20*time.Second, "limit of one check")
	c.RunE = func(c *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		o.Command, o.Env, o.Out = args, os.Environ(), c.OutOrStdout()
		report, err := workercheck.Run(ctx, o)
		if err != nil {
			return err
		}
		if !report.OK() {
			return exitError{code: 1}
		}
		return nil
	}
	return c
}
