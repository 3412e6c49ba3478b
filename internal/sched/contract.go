// Package sched decides what may run and sees it through. One goroutine, the
// scheduling loop, owns the ledger of claims and the table of runs; a Policy is
// a pure function from a View to a Plan. Interfaces it needs (Queue, Workers,
// Gate, Catalog) are declared here. Start with Scheduler.Run (loop.go), then
// Policy (policy.go) and runner.go for one job's way through a worker.
package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// The methods of Scheduler, for api (which declares its subset):
//
//	Run(admit, work context.Context) error
//	Load(ctx, instance) error      Unload(ctx, instance, cause) error     Reload(ctx, instance) error
//	Configure(ctx, instance, config) (plugins.Instance, []plugins.Issue, supervisor.Applied, error)
//	       hot update; a failed update leaves the old config in force
//	Enable/Disable(ctx, instance) error    (disable drains: running jobs finish, new ones are held)
//	Explain(ctx, jobs.ID) (Explanation, error)      why a job waits
//	State() SchedulerState         SetPolicy(ctx, name) error
//	Heartbeat() time.Time          last completed pass; the watchdog reads it

// View is everything a Policy may look at. It is built by the loop, never
// changed by the policy.
type View struct {
	Now      time.Time
	Snapshot resource.Snapshot
	Fresh    bool   // false: the monitor is stale; admit nothing that needs a fact
	Monitor  string // registered monitor, "" when none
	Groups   []GroupView
	Claims   []Claim
	FreeRAM  resource.Bytes // host memory left after margin and claims
	DevFree  map[resource.DeviceID]resource.Bytes
}

// GroupView is one instance with its ready jobs and its worker.
type GroupView struct {
	Instance  string
	Enabled   bool
	Known     bool
	Paused    bool
	Demand    resource.Demand
	Ready     []jobs.Ready // in order
	SlotsFree int          // execute slots free on the (possible) worker
	Resident  bool         // a worker is loaded: its resident claim stands
	Loading   bool
	IdleSince time.Time // zero when busy or not resident
	Pinned    bool
	CoolUntil time.Time // start failed; not before
	Failed    string    // the worker gave up: why
	WaitSince time.Time // since the first ready job is blocked on resources
}

// Claim is memory or a slot set aside.
type Claim struct {
	Owner  string // instance, or job id
	Kind   string // "resident", "execute"
	Device resource.DeviceID
	Bytes  resource.Bytes
	Phase  string // reserved, loading, resident, executing, draining, releasing
	Since  time.Time
}

// Plan is what a Policy decided. Jobs of the view that are in none of Start
// and Fail wait; Block has the reason for their group.
type Plan struct {
	Start  []Start
	Fail   []Failure
	Block  map[string]*jobs.Block // by instance
	Evict  []Eviction
	WakeAt time.Time // when time alone changes the answer; zero: never
}

// Start admits one job.
type Start struct {
	Job      jobs.ID
	Instance string
	Claims   []Claim
}

// Failure ends a job that can never run.
type Failure struct {
	Job   jobs.ID
	Error *jobs.Error
}

// Eviction stops an idle worker so that Asker can start.
type Eviction struct {
	Instance string
	Asker    string
}

// Policy decides. Pure: no clock, no log, no I/O.
type Policy interface {
	Name() string
	Decide(View) Plan
}
