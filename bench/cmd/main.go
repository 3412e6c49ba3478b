// Command cmd runs the benchmarks and prints them as a table: `make bench-quick`
// and `make bench`. bench/README.md says what each row means. It ends by itself,
// and leaves no process and no file behind but its results.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
	"github.com/cjmd/cjmd/bench/rows"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	harness.Options
	out  string
	rows []string
}

func parse(args []string) (options, error) {
	o := options{Options: harness.Options{Log: os.Stderr}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.Quick, "quick", false, "short repeats: the whole table in less than a minute")
	f.StringVar(&o.out, "out", "", "directory for machine.json and quick.json or full.json; empty: none are written")
	f.StringVar(&o.CJMD, "cjmd", "", "a cjmd to measure; empty: build it")
	f.StringVar(&o.Repo, "repo", ".", "the checkout")
	only := f.String("rows", "", "only these rows, separated by commas")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if *only != "" {
		o.rows = strings.Split(*only, ",")
	}
	return o, nil
}

// longest is the most that all rows together may take.
const longest = 15 * time.Minute

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	list := rows.List()
	for _, name := range o.rows {
		if !slices.ContainsFunc(list, func(r rows.Row) bool { return r.Name == name }) {
			return fmt.Errorf("cannot run row %q: there is none of that name", name)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	b, err := harness.Open(ctx, o.Options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	machine, err := b.Machine(ctx)
	if err != nil {
		return err
	}
	var results []harness.Result
	begin := time.Now()
	for _, r := range list {
		if len(o.rows) > 0 && !slices.Contains(o.rows, r.Name) {
			continue
		}
		at := time.Now()
		got, err := r.Run(ctx, b)
		if err != nil {
			return fmt.Errorf("row %s: %w", r.Name, err)
		}
		b.Note("%s: %.1f s", r.Name, time.Since(at).Seconds())
		results = append(results, got...)
	}
	b.Note("all: %.1f s", time.Since(begin).Seconds())
	fmt.Printf("%s, %d cores, %s, fsync %.3g ms, load %.2f, %s, %s\n\n", machine.CPU, machine.Cores, machine.FileSystem,
		machine.FsyncP50MS, machine.Load1, machine.Go, machine.Python)
	if machine.Load1 > float64(machine.Cores)/2 {
		fmt.Printf("The machine was busy when the run began (load %.2f on %d cores): absolute aims say little, ratios more.\n\n", machine.Load1, machine.Cores)
	}
	if err := harness.Table(os.Stdout, results); err != nil {
		return fmt.Errorf("cannot print the table: %w", err)
	}
	return store(o, machine, results)
}

func store(o options, machine harness.Machine, results []harness.Result) error {
	if o.out == "" {
		return nil
	}
	name := "full.json"
	if o.Quick {
		name = "quick.json"
	}
	if err := harness.Write(o.out, "machine.json", machine); err != nil {
		return err
	}
	return harness.Write(o.out, name, results)
}
