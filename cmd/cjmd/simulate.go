package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/sched/simtest"
)

// simulateOptions are the flags of `cjmd simulate`.
type simulateOptions struct {
	policy    string
	svg       string
	json      bool
	alone     bool
	ramMargin int
	margin    int
}

// simulateCommand is `cjmd simulate TRACE…`.
func simulateCommand() *cobra.Command {
	var o simulateOptions
	c := &cobra.Command{
		Use:   "simulate [flags] TRACE…",
		Short: "Try the scheduler on a simulated machine",
		Long: "Runs the daemon's own scheduling loop on the machines and jobs of the trace files, in virtual time, and prints how long\n" +
			"everything took and waited, compared with one job at a time and with a scheduler that keeps no account of memory.\n" +
			"The same trace gives the same output each time. docs/simulator.md describes traces; examples/traces has some.",
		Args: cobra.MinimumNArgs(1),
	}
	c.Flags().StringVar(&o.policy, "policy", "reserve", "policy to try: "+strings.Join(simulatedPolicies(), ", "))
	c.Flags().StringVar(&o.svg, "svg", "", "draw the run into this file; with several traces: one file each, named by the trace")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON, one document a trace")
	c.Flags().BoolVar(&o.alone, "alone", false, "compare with nothing")
	c.Flags().IntVar(&o.ramMargin, "ram-margin-mb", 512, "host memory that is never given to workers")
	c.Flags().IntVar(&o.margin, "margin-mb", 256, "memory of each accelerator that is never given to workers")
	c.RunE = func(c *cobra.Command, args []string) error {
		if o.json && o.svg == "-" {
			return errors.New("cannot print JSON and SVG to the same place")
		}
		for _, path := range args {
			if err := o.simulate(c.OutOrStdout(), path, len(args) > 1); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// candidates are the policies that can be tried: the daemon's, and those that
// they are compared with.
func candidates() []sched.Policy {
	return []sched.Policy{policy.Reserve(policy.ReserveOptions{}), policy.Queue(math.MaxInt64), policy.Safety(), policy.Permissive(),
		simtest.Sequential(), simtest.SkipAhead()}
}

func simulatedPolicies() []string {
	var out []string
	for _, p := range candidates() {
		out = append(out, p.Name())
	}
	return out
}

func (o *simulateOptions) simulate(w io.Writer, path string, several bool) error {
	all := candidates()
	i := slices.IndexFunc(all, func(p sched.Policy) bool { return p.Name() == o.policy })
	if i < 0 {
		return &sched.PolicyError{Name: o.policy, Known: simulatedPolicies()}
	}
	t, err := simtest.LoadTrace(path)
	if err != nil {
		return err
	}
	if len(t.Arrivals) == 0 {
		return fmt.Errorf("cannot simulate %s: no jobs arrive in it", path)
	}
	opts := simtest.Options{Policy: all[i], RAMMargin: resource.FromMB(float64(o.ramMargin)), Margin: resource.FromMB(float64(o.margin))}
	if o.policy == simtest.Sequential().Name() {
		opts.Slots = 1
	}
	compare := simtest.Compare
	if o.alone {
		compare = simtest.Alone
	}
	c, results, err := compare(t, opts)
	if err != nil {
		return err
	}
	if o.svg != "" {
		if err := o.draw(w, t.Name, several, results[0], c); err != nil {
			return err
		}
	}
	switch {
	case o.json:
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(c)
	case o.svg == "-":
		return nil
	}
	return c.Print(w)
}

// draw writes the SVG of one trace.
func (o *simulateOptions) draw(w io.Writer, trace string, several bool, r *simtest.Result, c *simtest.Comparison) (err error) {
	if o.svg == "-" {
		return simtest.WriteSVG(w, r, c)
	}
	name := o.svg
	if several {
		ext := filepath.Ext(name)
		name = strings.TrimSuffix(name, ext) + "-" + trace + ext
	}
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("cannot draw: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return simtest.WriteSVG(f, r, c)
}
