package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/cjmd/cjmd/internal/api"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/plugins"
)

// machine is the Gate as the API declares it: api imports no monitor.
type machine struct {
	*monitors.Gate
	plugins *plugins.Catalog
}

// Monitors lists what can be registered: those of the daemon, and plugins that
// say of themselves that they are monitors. All but the registered one are idle.
func (m machine) Monitors() []api.MonitorInfo {
	var out []api.MonitorInfo
	for _, name := range m.Known() {
		out = append(out, api.MonitorInfo{Name: name, State: "idle"})
	}
	for _, inst := range m.plugins.Instances() {
		if _, man, err := m.plugins.Instance(inst.ID); err == nil && tellsMonitor(man) {
			out = append(out, api.MonitorInfo{Name: monitors.PluginPrefix + inst.ID, Instance: inst.ID, State: "idle"})
		}
	}
	for _, s := range m.State() {
		i := slices.IndexFunc(out, func(info api.MonitorInfo) bool { return info.Name == s.Name })
		if i < 0 { // a plugin that keeps to itself what it is, or is not there yet
			i = len(out)
			out = append(out, api.MonitorInfo{Name: s.Name, Instance: m.Instance()})
		}
		info := &out[i]
		info.Registered, info.State, info.At, info.Err = true, s.State, s.LastSample, s.Error
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
