package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/monitors"
	simmonitor "github.com/cjmd/cjmd/internal/monitors/sim"
	"github.com/cjmd/cjmd/internal/sched/simtest"
	"github.com/cjmd/cjmd/internal/simserve"
)

// simulation is what the flags of serve say about a simulated machine.
type simulation struct {
	trace string
	jobs  bool
}

func (s *simulation) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.trace, "simulate", "", "serve the machine and the plugins of this trace file; the accelerators and their jobs are simulated, all else is real")
	fs.BoolVar(&s.jobs, "simulate-jobs", false, "with --simulate: also submit the trace's jobs at their times")
}

// open makes the simulated machine, where one was asked for. The private
// directory beside the socket holds its manifests.
func (s *simulation) open(d *daemonParts) error {
	if s.trace == "" {
		if s.jobs {
			return errors.New("--simulate-jobs needs --simulate TRACE")
		}
		return nil
	}
	t, err := simtest.LoadTrace(s.trace)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find the program that simulated workers run: %w", err)
	}
	dir := filepath.Join(d.cfg.RunDir, "simulated")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make directory: %w", err)
	}
	d.simulated, err = simserve.New(simserve.Options{Trace: t, Dir: dir, Executable: exe})
	if err != nil {
		return err
	}
	d.submitTrace = s.jobs
	d.onClose(d.simulated.Close)
	d.log.Warn("the accelerators of this daemon are simulated", zap.String("trace", t.Name), zap.Int("devices", len(t.Machine.Devices)))
	return nil
}

// simulatedMonitor is the list of monitors with that of the simulated machine,
// and the name of the one to register.
func (d *daemonParts) simulatedMonitor(list []monitors.Constructor, registered string) ([]monitors.Constructor, string) {
	if d.simulated == nil {
		return list, registered
	}
	return append(list, simmonitor.Constructor(d.simulated)), simmonitor.Name
}

// runSimulation serves the simulated workers, and submits the trace's jobs,
// until ctx ends. Nothing to do without a simulated machine.
func (d *daemonParts) runSimulation(ctx context.Context) error {
	if d.simulated == nil {
		<-ctx.Done()
		return nil
	}
	var submitted error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if d.submitTrace {
			submitted = d.simulated.Submit(ctx, d.submitSimulated)
		}
	}()
	err := d.simulated.Run(ctx)
	<-done
	if submitted != nil && ctx.Err() == nil {
		d.log.Error("cannot submit all jobs of the trace", zap.Error(submitted))
	}
	return err
}

// submitSimulated submits one job of the trace; its id is new each time the
// daemon starts, its run time is the trace's.
func (d *daemonParts) submitSimulated(ctx context.Context, s simtest.Submission) error {
	if d.closed.Load() {
		return nil
	}
	_, err := d.queue.Submit(ctx, []jobs.Submission{{Submitter: s.Submitter, Spec: jobs.Spec{
		Instance: s.Plugin, Priority: s.Priority, Labels: map[string]string{"trace": s.ID},
		Kwargs: fmt.Appendf(nil, `{"seconds":%.3f}`, s.Run.Seconds())}}})
	return err
}
