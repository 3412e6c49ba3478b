package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/cjmd/cjmd/internal/api"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/monitors"
)

// machine is the Gate as the API declares it: api imports no monitor.
type machine struct{ *monitors.Gate }

// Monitors lists what can be registered; all but the registered one are idle.
func (m machine) Monitors() []api.MonitorInfo {
	var out []api.MonitorInfo
	states := m.State()
	for _, name := range m.Known() {
		info := api.MonitorInfo{Name: name, State: "idle"}
		if i := slices.IndexFunc(states, func(s monitors.MonitorState) bool { return s.Name == name }); i >= 0 {
			s := states[i]
			info.Registered, info.State, info.At, info.Err = true, s.State, s.LastSample, s.Error
		}
		out = append(out, info)
	}
	return out
}

// Register makes name the system monitor.
func (m machine) Register(ctx context.Context, name string) error {
	err := m.RegisterName(ctx, name)
	var unknown *monitors.UnknownError
	if errors.As(err, &unknown) {
		return &api.UnknownError{What: "monitor", Name: unknown.Name, Known: unknown.Known}
	}
	return err
}

// intake is the queue as the API sees it: no new jobs once the daemon stops.
type intake struct {
	api.Jobs
	closed *atomic.Bool
}

// Submit adds jobs. jobs.ErrDraining while the daemon stops.
func (i intake) Submit(ctx context.Context, subs []jobs.Submission) ([]jobs.Submitted, error) {
	if i.closed.Load() {
		return nil, jobs.ErrDraining
	}
	return i.Jobs.Submit(ctx, subs)
}

// Retry adds a job that repeats another.
func (i intake) Retry(ctx context.Context, id jobs.ID, submitter string) (jobs.Job, error) {
	if i.closed.Load() {
		return jobs.Job{}, jobs.ErrDraining
	}
	return i.Jobs.Retry(ctx, id, submitter)
}
