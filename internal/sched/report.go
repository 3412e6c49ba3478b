package sched

import (
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// What the loop tells readers about its ledger: copies, for the API. The
// methods of Scheduler that answer with them:
//
//	Lease(ctx, LeaseRequest) (LeaseState, error)      *NeverFitsError, *NoDeviceError, ErrStopping
//	Leases(ctx) ([]LeaseState, error)
//	EndLease(ctx, id, by string) error                ErrNoLease
//	Profile(ctx, instance) (ProfileState, error)      the catalogue's error for an unknown one
//	ResetProfile(ctx, instance) (int, error)          how many were forgotten, of its plugin
//	Try(ctx, Wish) (Plan, error)                      Preview for a job that nobody submitted

// WorkerAccount is what one worker has of one pool of memory. The larger of
// Resident+Execute and Measured counts.
type WorkerAccount struct {
	Instance string
	Device   resource.DeviceID
	Resident resource.Bytes // claimed as long as it lives
	Execute  resource.Bytes // claimed by its running jobs
	Measured resource.Bytes
	Source   string // of Measured: see Claim.Source
	Phase    string // of its resident claim
}

// Counted is what the ledger takes off for it.
func (a WorkerAccount) Counted() resource.Bytes { return max(a.Resident+a.Execute, a.Measured) }

// WaitingGroup is one instance whose jobs, or load, wait.
type WaitingGroup struct {
	Instance string
	Queued   int // all its pending jobs
	Block    jobs.Block
}

// LeaseRequest asks for memory for programs that are none of ours.
type LeaseRequest struct {
	Device string // UUID or index; HostDevice: host memory; "": the accelerator where it costs least
	Bytes  resource.Bytes
	For    time.Duration // 0: until it is ended
	Holder string        // who asks
	Note   string
}

// LeaseState is a lease and how far it is granted: what Missing says is still
// held by our workers, and goes to the lease before anything else.
type LeaseState struct {
	resource.Lease
	Missing resource.Bytes // 0: all of it is there
	Holders []string       // instances that hold it
}

// ProfileState is what is known about an instance's needs.
type ProfileState struct {
	Instance   string
	Plugin     string
	ConfigHash string          // of the configuration in force
	Need       Need            // what the ledger reckons with now
	Profiles   []learn.Profile // all of its plugin, newest first
}

// Wish is a job that nobody submitted.
type Wish struct {
	Instance  string
	Demand    *resource.Demand // instead of what is known; nil: as known
	Priority  int
	Submitter string
}

// NeverFitsError says that this machine never has what is asked for.
type NeverFitsError struct{ Reason *jobs.Error }

func (e *NeverFitsError) Error() string { return e.Reason.Message }

// NoDeviceError says that no accelerator bears a name.
type NoDeviceError struct {
	Name  string
	Known []resource.DeviceID
}

func (e *NoDeviceError) Error() string { return fmt.Sprintf("there is no device %q", e.Name) }

// ErrNoLease answers about a lease that is not there, or not any more.
var ErrNoLease = errors.New("there is no such lease")
