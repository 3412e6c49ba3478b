// Package workercheck is the conformance suite of the worker protocol: it starts
// a program as cjmd would, speaks with it over a real socketpair and says what
// it does and does not hold to (docs/worker-protocol.md, "The conformance
// plugin"). Start with Run; checks.go is the list of what is checked. Each check
// has a process of its own, so that one failure does not colour the next.
package workercheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Options of one run.
type Options struct {
	Command []string  // the worker's program and arguments
	Env     []string  // its environment, complete; CJM_WORKER_FD and CJM_WORKER_CHECK are added
	Dir     string    // its working directory, "" for ours
	Out     io.Writer // where results are printed
	JSON    bool      // one JSON document at the end instead of a line per check
	// Only names the checks to run; empty: all. "ready" is always run.
	Only []string
	// Timeout bounds each wait for something that must come; 0: 10 s.
	Timeout time.Duration
}

// Status of one check.
type Status string

// A check that is skipped concerns something that the worker does not offer.
const (
	Pass Status = "pass"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Check is the result of one check.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Seen   string `json:"seen"` // what was seen, or why it was skipped
	Millis int64  `json:"ms"`
}

// Report is the result of a run.
type Report struct {
	Command      []string `json:"command"`
	Name         string   `json:"name,omitempty"`
	Version      string   `json:"version,omitempty"`
	Runtime      string   `json:"runtime,omitempty"`
	Capabilities []string `json:"capabilities"`
	Checks       []Check  `json:"checks"`
	Passed       int      `json:"passed"`
	Failed       int      `json:"failed"`
	Skipped      int      `json:"skipped"`
}

// OK says whether nothing failed.
func (r Report) OK() bool { return r.Failed == 0 && r.Passed > 0 }

// skipped is the error of a check that does not apply.
type skipped string

func (s skipped) Error() string { return string(s) }

// Run checks one program. Its error says that the suite could not be run or its
// results not be printed; that the worker fails is in the Report.
func Run(ctx context.Context, o Options) (Report, error) {
	if len(o.Command) == 0 {
		return Report{}, errors.New("cannot check a worker: no command was given")
	}
	if _, err := exec.LookPath(o.Command[0]); err != nil {
		return Report{}, fmt.Errorf("cannot check a worker: %w", err)
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	list, err := selected(o.Only)
	if err != nil {
		return Report{}, err
	}
	rep := Report{Command: o.Command, Capabilities: []string{}}
	run := &runner{o: o, rep: &rep}
	for _, c := range list {
		if err := ctx.Err(); err != nil {
			return rep, context.Cause(ctx)
		}
		if err := run.one(ctx, c); err != nil {
			return rep, fmt.Errorf("cannot print the results: %w", err)
		}
	}
	return rep, run.finish()
}

// selected keeps the named checks and the first one, which all need.
func selected(only []string) ([]check, error) {
	all := checks()
	if len(only) == 0 {
		return all, nil
	}
	var names []string
	var list []check
	for _, c := range all {
		names = append(names, c.name)
		if c.name == readyCheck || slices.Contains(only, c.name) {
			list = append(list, c)
		}
	}
	for _, name := range only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("cannot check a worker: there is no check %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return list, nil
}

type runner struct {
	o      Options
	rep    *Report
	broken bool // the worker never became ready: nothing else can be checked
}

// one runs one check and prints it.
func (r *runner) one(ctx context.Context, c check) error {
	begin := time.Now()
	var seen string
	var err error
	switch {
	case r.broken:
		err = skipped("the worker did not become ready")
	case c.needs != "" && !slices.Contains(r.rep.Capabilities, c.needs):
		err = skipped(fmt.Sprintf("the worker does not say that it has the capability %q", c.needs))
	default:
		seen, err = r.run(ctx, c)
	}
	result := Check{Name: c.name, Status: Pass, Seen: seen, Millis: time.Since(begin).Milliseconds()}
	var skip skipped
	switch {
	case errors.As(err, &skip):
		result.Status, result.Seen = Skip, skip.Error()
		r.rep.Skipped++
	case err != nil:
		result.Status, result.Seen = Fail, err.Error()
		r.rep.Failed++
		r.broken = r.broken || c.name == readyCheck
	default:
		r.rep.Passed++
	}
	r.rep.Checks = append(r.rep.Checks, result)
	if r.o.JSON {
		return nil
	}
	_, err = fmt.Fprintf(r.o.Out, "%-4s  %-22s %5d ms  %s\n", result.Status, result.Name, result.Millis, result.Seen)
	return err
}

// run starts a process for the check and leaves nothing of it behind.
func (r *runner) run(ctx context.Context, c check) (string, error) {
	s, err := start(r.o, c.hello)
	if err != nil {
		return "", err
	}
	defer s.end()
	ctx, cancel := context.WithTimeoutCause(ctx, 12*r.o.Timeout, errors.New("the check as a whole took too long"))
	defer cancel()
	if c.name == readyCheck {
		return s.checkReady(ctx, r.rep)
	}
	if _, err := s.hello(ctx); err != nil {
		return "", s.explain(err)
	}
	seen, err := c.run(ctx, s)
	if err != nil {
		return seen, s.explain(err)
	}
	return seen, nil
}

func (r *runner) finish() error {
	if r.o.JSON {
		enc := json.NewEncoder(r.o.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(r.rep)
	}
	_, err := fmt.Fprintf(r.o.Out, "%s: %d passed, %d failed, %d skipped\n",
		strings.Join(r.o.Command, " "), r.rep.Passed, r.rep.Failed, r.rep.Skipped)
	return err
}
