package sched

import (
	"context"
	"encoding/json"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// Queue is what the loop needs of jobs.Queue (see JobQueue). Groups, Cancels
// and NextDeadline read memory only. Admit names the worker when it is loaded
// already: the job is then executing from the start.
type Queue interface {
	Changed() <-chan struct{}
	Groups(limit int) []jobs.Group
	Cancels() []jobs.CancelIntent
	NextDeadline() time.Time
	Expire(ctx context.Context, now time.Time) error
	Admit(ctx context.Context, id jobs.ID, worker string) (Run, error)
	Fail(ctx context.Context, id jobs.ID, err *jobs.Error) error
	SetBlocks(blocks map[string]*jobs.Block)
	Get(ctx context.Context, id jobs.ID) (jobs.Job, error)
}

// Run is the handle on one attempt of one job. Finish and Interrupt return once
// the end is durable; while the store cannot be written they go on trying until
// ctx ends.
type Run interface {
	Job() jobs.Job
	// Resolve is Job with what its arguments refer to in their place. It may read
	// results: not for the loop. A *jobs.RefError will be the same next time.
	Resolve(ctx context.Context) (jobs.Job, error)
	// Dir makes the job's private directory.
	Dir() (string, error)
	Started() <-chan struct{} // closed when the start is durable
	SetPhase(ctx context.Context, phase jobs.Phase) error
	Sink() supervisor.Sink
	Finish(ctx context.Context, out jobs.Outcome) (jobs.Job, error)
	Interrupt(ctx context.Context) error
}

// Workers is what the loop needs of supervisor.Supervisor.
type Workers interface {
	EnsureReady(ctx context.Context, instance string) error
	Execute(ctx context.Context, instance string, call supervisor.Call, sink supervisor.Sink) (supervisor.Result, error)
	Stop(ctx context.Context, instance, cause string) error
	Reset(instance string)
	Forget(instance string) // ends the bookkeeping of a deleted instance
	Configure(ctx context.Context, instance string, old, updated json.RawMessage) (supervisor.Applied, error)
	Request(ctx context.Context, instance, method string, params json.RawMessage) (json.RawMessage, error)
	Status(instance string) (supervisor.Status, bool)
	List() []supervisor.Status
	Changed() <-chan struct{}
}

// Gate is what the loop needs of monitors.Gate.
type Gate interface {
	Latest() (s resource.Snapshot, fresh bool)
	Changed() <-chan struct{}
	// SetActive asks for fast sampling while something loads, runs or is released.
	SetActive(active bool)
	// Registered names the system monitor, "" when there is none.
	Registered() string
}

// Catalog is what the scheduler needs of plugins.Catalog.
type Catalog interface {
	Instances() []plugins.Instance
	Instance(id string) (plugins.Instance, plugins.Manifest, error)
	SetEnabled(ctx context.Context, id string, enabled bool) (plugins.Instance, error)
	CheckConfig(id string, config json.RawMessage) ([]plugins.Issue, error)
	SetConfig(ctx context.Context, id string, config json.RawMessage) (plugins.Instance, []plugins.Issue, error)
	Changed() <-chan struct{}
}
