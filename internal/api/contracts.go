package api

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// Jobs is the queue as its clients see it; jobs.Queue behind NewJobs.
type Jobs interface {
	Submit(ctx context.Context, subs []jobs.Submission) ([]jobs.Submitted, error)
	Get(ctx context.Context, id jobs.ID) (jobs.Job, error)
	List(ctx context.Context, q jobs.ListQuery) (jobs.Page, error)
	Wait(ctx context.Context, id jobs.ID) (jobs.Job, error)
	Cancel(ctx context.Context, id jobs.ID, by, reason string) (jobs.Job, error)
	Patch(ctx context.Context, id jobs.ID, p jobs.Patch) (jobs.Job, error)
	Hold(ctx context.Context, id jobs.ID) (jobs.Job, error)
	Release(ctx context.Context, id jobs.ID) (jobs.Job, error)
	Retry(ctx context.Context, id jobs.ID, submitter string) (jobs.Job, error)
	SetControl(ctx context.Context, scope string, m jobs.Mode) error
	Controls() map[string]jobs.Mode
	Overview(ctx context.Context, limit int) (jobs.Overview, error)
	Result(ctx context.Context, id jobs.ID) (io.ReadSeekCloser, jobs.ResultInfo, error)
	Log(ctx context.Context, id jobs.ID, after uint64) (JobLog, error)
	Files(ctx context.Context, id jobs.ID, sums bool) (jobs.Files, error)
	OpenFile(ctx context.Context, id jobs.ID, name string) (*os.File, jobs.File, error)
	PutFile(ctx context.Context, id jobs.ID, name string, u jobs.Upload) (f jobs.File, created bool, err error)
	RemoveFile(ctx context.Context, id jobs.ID, name, ifMatch string) error
	NewStage() (*jobs.Stage, error)
}

// Lifecycle is the scheduler's side of plugins: only it may start or stop a
// worker, because it owns the memory that goes with one.
type Lifecycle interface {
	Load(ctx context.Context, instance string) error
	Unload(ctx context.Context, instance, cause string) error
	Reload(ctx context.Context, instance string) error
	LoadAll(ctx context.Context) map[string]error
	UnloadAll(ctx context.Context, cause string) map[string]error
	Enable(ctx context.Context, instance string) error
	Disable(ctx context.Context, instance string) error
	Configure(ctx context.Context, instance string, config json.RawMessage) (plugins.Instance, []plugins.Issue, supervisor.Applied, error)
	Explain(ctx context.Context, id jobs.ID) (sched.Explanation, error)
	Preview(ctx context.Context, instance string) (sched.Plan, error)
	State() sched.SchedulerState
	SetPolicy(ctx context.Context, name string) error
}

// Ledger is the scheduler's side of memory: what is kept for others, what was
// learned, and what a job would meet.
type Ledger interface {
	Lease(ctx context.Context, ask sched.LeaseRequest) (sched.LeaseState, error)
	Leases(ctx context.Context) ([]sched.LeaseState, error)
	EndLease(ctx context.Context, id, by string) error
	Profile(ctx context.Context, instance string) (sched.ProfileState, error)
	ResetProfile(ctx context.Context, instance string) (int, error)
	Try(ctx context.Context, wish sched.Wish) (sched.Plan, error)
}

// Plugins is the catalogue of what can be run.
type Plugins interface {
	Discover(ctx context.Context) ([]plugins.Plugin, error)
	Plugins() []plugins.Plugin
	Plugin(name string) (plugins.Plugin, error)
	Instances() []plugins.Instance
	Instance(id string) (plugins.Instance, plugins.Manifest, error)
	// Lookup is Instance with the manifest as it was declared.
	Lookup(id string) (plugins.Instance, plugins.Manifest, error)
	CreateInstance(ctx context.Context, inst plugins.Instance) (plugins.Instance, error)
	Update(ctx context.Context, id string, s plugins.Settings) (plugins.Instance, error)
	DeleteInstance(ctx context.Context, id string) error
}

// Secrets keeps the secrets of plugins; nothing reads a value back.
type Secrets interface {
	Set(plugin, name, value string) error
	Delete(plugin, name string) error
	Names(plugin string) ([]string, error)
}

// PrivateCall begins the id of a call that is no job: the daemon's own questions
// to a plugin. No job id can begin so.
const PrivateCall = "~"

// Workers is what may be asked of running workers.
type Workers interface {
	Status(instance string) (supervisor.Status, bool)
	List() []supervisor.Status
	Tiers(ctx context.Context) []supervisor.TierState
	Request(ctx context.Context, instance, method string, params json.RawMessage) (json.RawMessage, error)
	// Logs is the log of an instance's worker, empty when it never had one; false
	// when the daemon is going.
	Logs(instance string) (supervisor.LogSource, bool)
}

// Machine is the gate of monitors.
type Machine interface {
	Latest() (resource.Snapshot, bool)
	// Watch returns a channel that is closed at the next snapshot.
	Watch() <-chan struct{}
	Monitors() []MonitorInfo
	Registered() string
	// Register makes name the system monitor; *UnknownError when there is none.
	Register(ctx context.Context, name string) error
}

// MonitorInfo is one monitor that can be registered.
type MonitorInfo struct {
	Name       string
	Instance   string // that serves it, "" for those of the daemon
	Registered bool
	State      string // idle, starting, fresh, stale, failed
	At         time.Time
	Err        string
}

// Feed is the journal.
type Feed interface {
	Subscribe(f events.Filter, after events.Seq) *events.Subscription
	Last() events.Seq
}

// UnknownError says that a name stands for nothing, with the names that do.
// Adapters of Machine return it.
type UnknownError struct {
	What  string // "monitor", "policy"
	Name  string
	Known []string
}

func (e *UnknownError) Error() string { return "no such " + e.What + ": " + e.Name }
