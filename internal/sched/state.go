package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// SchedulerState is the loop at a glance: a copy, true at LastPass.
type SchedulerState struct {
	Policy   string
	Policies []string // names that SetPolicy accepts
	Monitor  string   // registered monitor, "" when none
	Fresh    bool     // the monitor's newest reading is young enough
	FreeRAM  resource.Bytes
	Margin   resource.Bytes // host memory that is never given away
	Slots    int            // bound of jobs running at once on the host, 0: none
	Claims   []Claim
	Runs     []RunState
	Devices  []DeviceView    // the ledger's sums, by index
	Accounts []WorkerAccount // what they are made of, by instance
	Leases   []LeaseState
	Shadow   *Shadow
	Groups   []WaitingGroup // those that wait, by instance
	// MonitorInstance serves the registered monitor, "" when none does.
	MonitorInstance string
	// Quarantined instances start nothing until a person has looked: why.
	Quarantined map[string]string
	// Waiting counts, by block code, the instances whose jobs wait.
	Waiting      map[string]int
	Passes       uint64
	LastPass     time.Time
	PassDuration time.Duration
}

// RunState is one job or load in progress.
type RunState struct {
	Job      jobs.ID // "" for a load that no job asked for
	Instance string
	Phase    jobs.Phase
	Since    time.Time
}

// Explanation says why a job stands where it stands, with the numbers.
type Explanation struct {
	Job      jobs.ID
	Status   jobs.Status
	Phase    jobs.Phase
	Summary  string // one sentence for people
	Block    *jobs.Block
	Policy   string
	Priority int
	Seq      int64
	// Ahead counts the ready jobs of the same instance that come before this one.
	// -1 when the job is not among those that may start.
	Ahead int

	Needs   resource.Demand
	FreeRAM resource.Bytes // after margin and claims
	DevFree map[resource.DeviceID]resource.Bytes
	Monitor string
	Fresh   bool

	Need    Need         // what the ledger reckons with
	Rank    *Rank        // nil: the policy takes jobs as they come
	Devices []DeviceView // by index
	Shadow  *Shadow      // the reservation in force, whosever it is

	Worker    string // state of its worker
	SlotsFree int
	Slots     int
	Claims    []Claim // of its instance
}
