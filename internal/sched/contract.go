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
//	       Unload waits for the calls in flight; ForceUnload(ctx, instance, cause) does not
//	LoadAll(ctx), UnloadAll(ctx) map[string]error    by instance; nil where it went well
//	Configure(ctx, instance, config) (plugins.Instance, []plugins.Issue, supervisor.Applied, error)
//	       hot update; a failed update leaves the old config in force
//	Enable/Disable(ctx, instance) error    (disable drains: running jobs finish, new ones are held)
//	Explain(ctx, jobs.ID) (Explanation, error)      why a job waits
//	Preview(ctx, instance) (Plan, error)             what would happen now; nothing does
//	State() SchedulerState         SetPolicy(ctx, name) error
//	Heartbeat() time.Time          last completed pass; the watchdog reads it

// View is everything a Policy may look at. It is built by the loop, never
// changed by the policy, and valid only during Decide: the loop reuses it.
type View struct {
	Now      time.Time
	Snapshot resource.Snapshot
	Fresh    bool   // false: the monitor is stale; admit nothing that needs a fact
	Monitor  string // registered monitor, "" when none
	Groups   []GroupView
	Claims   []Claim
	// FreeRAM is host memory left after the margin and every claim that has not
	// materialised yet; negative when claims outgrow what is there. A worker that
	// is loaded has its memory counted once: what it claims beyond what it uses
	// is taken off, what it uses is already missing from the monitor's figure.
	FreeRAM  resource.Bytes
	DevFree  map[resource.DeviceID]resource.Bytes
	TotalRAM resource.Bytes // what could ever be free: total minus margin
	Devices  []DeviceView   // in the order of their index
	Running  []RunView
	// Share is each submitter's use of the machine, decayed (device-seconds); Quota
	// is how many more jobs each may have running, absent: no bound.
	Share map[string]float64
	Quota map[string]int
	// SwapsLeft is how often a device may still change hands; at SwapsAgain the
	// next one is allowed. A device that is absent has the whole budget.
	SwapsLeft  map[resource.DeviceID]int
	SwapsAgain map[resource.DeviceID]time.Time
	// Shadow is the reservation of the plan before; nil: there was none.
	Shadow *Shadow
	// MonitorInstance serves the registered monitor: its worker is never a victim.
	MonitorInstance string

	Slots    int // jobs the host may start now, over all instances; -1: no bound
	SlotsMax int // the bound, for the sentence; 0: none
}

// GroupView is one instance with its ready jobs and its worker.
type GroupView struct {
	Instance    string
	Enabled     bool
	Known       bool
	Problem     string // why an unknown instance cannot be run
	Demand      resource.Demand
	Ready       []jobs.Ready // in order
	LoadWanted  bool         // somebody asked for the worker itself
	Concurrency int          // execute slots of the (possible) worker
	SlotsFree   int
	Resident    bool // a worker is loaded or on its way: its resident claim stands
	Loading     bool
	IdleSince   time.Time // zero when busy or not resident
	Pinned      bool
	Stopping    string    // why its worker is being stopped; "" when it is not
	Barred      string    // why nothing new may start on its worker, wherever that stays; "" when it may
	CoolUntil   time.Time // start failed; not before
	Failed      string    // the worker gave up: why
	// WaitingFor names the workers that are being stopped to make room for this one.
	WaitingFor []string
	WaitSince  time.Time // since the first ready job is blocked on resources

	Need    Need
	Devices []resource.DeviceID // where its worker sits or is about to sit
	// Pin admits no other device, Prefer and Avoid are wishes; UUIDs or indices.
	Pin, Prefer, Avoid []string
	Queued             int // all its pending jobs, also those beyond Ready
	ResidentSince      time.Time
	LastUsed           time.Time
	Uses               float64       // per hour: how often it was wanted again after a rest, lately
	LoadTime           time.Duration // learned; 0: unknown
	RunTime            time.Duration // median; 0: unknown
	RunTimeP90         time.Duration
	CanRelease         bool // its plugin offers release(), and was not asked since it last ran
	Measuring          bool // its run has a device to itself
	// Lingering: a run of its has ended that the readings may still have in them, so
	// what its worker seems to hold may be on its way back.
	Lingering bool
	// LastPriority is that of the job its worker ran last: whom it is kept for.
	LastPriority int
	// Streak counts the starts in a row that carried Start.Affinity.
	Streak int
}

// Kinds and phases of a Claim.
const (
	KindResident = "resident" // lives with the worker
	KindExecute  = "execute"  // lives with the job
	KindLease    = "lease"    // the owner's, for programs that are none of ours

	PhaseReserved    = "reserved" // set aside, nothing started
	PhaseLoading     = "loading"
	PhaseResident    = "resident"
	PhaseExecuting   = "executing"
	PhaseDraining    = "draining"    // the worker is being stopped
	PhaseReleasing   = "releasing"   // the worker is gone, its memory is not seen back yet
	PhaseQuarantined = "quarantined" // its memory did not come back in time
)

// Claim is memory or a slot set aside.
type Claim struct {
	Owner    string // instance, job id, lease id
	Kind     string // KindResident, KindExecute, KindLease
	Instance string // whose worker holds it; "" for a lease
	Device   resource.DeviceID
	Bytes    resource.Bytes
	// Measured is what the owner was last seen to use of the device, Source by what
	// ("nvml", "fdinfo", "worker", "delta"; "" before the first measurement).
	Measured resource.Bytes
	Source   string
	Phase    string
	Since    time.Time
}

// Plan is what a Policy decided. Jobs of the view that are in none of Start
// and Fail wait; Block has the reason for their group.
type Plan struct {
	Start []Start
	Fail  []Failure
	Block map[string]*jobs.Block // by instance
	Evict []Eviction
	// Hold keeps room for an asker whose victims are still being stopped; the
	// claims are in phase reserved and are the asker's own when it starts.
	Hold    []Claim
	Shadow  *Shadow
	Release []ReleaseAsk
	Thrash  []Thrash
	WakeAt  time.Time // when time alone changes the answer; zero: never
}

// Start admits one job, or with an empty Job the load that was asked for.
// Claims are what must be set aside first; none when the worker is resident.
type Start struct {
	Job      jobs.ID
	Instance string
	Claims   []Claim
	Devices  []resource.DeviceID // where its worker is to sit, in order; nil: it needs none, or is there
	// Measure gives the instance its device to itself until the run has ended.
	Measure bool
	// Affinity: the job goes before an older one because its worker is loaded.
	Affinity bool
}

// Failure ends a job that can never run, or with an empty Job the load that
// was asked for.
type Failure struct {
	Job      jobs.ID
	Instance string
	Error    *jobs.Error
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
