package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// Sources of a number in a Need, best known first.
const (
	SourceManifest = "manifest" // the author's or the owner's word
	SourceProfile  = "profile"  // learned from earlier runs
	SourceMeasured = "measured" // read off the resident worker
	SourceNone     = "none"     // nobody knows: a measuring run finds out
)

// Need is what one worker of an instance takes, and where the figures come from.
type Need struct {
	GPU          bool
	Devices      int            // accelerators it spans; at least 1 when GPU
	ResidentVRAM resource.Bytes // per device, as long as the worker lives
	ExecuteVRAM  resource.Bytes // per device and job, on top
	ResidentRAM  resource.Bytes
	ExecuteRAM   resource.Bytes
	// Known is false when nobody can say what the GPU part takes: the first run
	// then has one device to itself and measures.
	Known  bool
	Source string
}

// DeviceView is one accelerator's memory as the ledger accounts for it:
// Free = Total − Margin − External − Claimed − Leased − Quarantined.
type DeviceView struct {
	ID    resource.DeviceID
	Index int
	Name  string
	Total resource.Bytes
	Used  resource.Bytes // by everybody, as the monitor reads it
	// External is what others than our workers use, held at its peak of the last minute.
	External resource.Bytes
	// Claimed sums, over our workers, the larger of what is claimed and what is used.
	Claimed     resource.Bytes
	Leased      resource.Bytes
	Quarantined resource.Bytes
	Margin      resource.Bytes
	Free        resource.Bytes // negative when claims outgrow what is there
	Unified     bool
	Exclusive   string // instance that measures here and has the device to itself
}

// RunView is one job at work.
type RunView struct {
	Job       jobs.ID
	Instance  string
	Submitter string
	Priority  int
	Since     time.Time
	Ends      time.Time // by the learned p90; zero: nobody knows
	Devices   []resource.DeviceID
	VRAM, RAM resource.Bytes // execute claim (VRAM per device)
}

// Shadow is the reservation of the first job that cannot start: others may
// start only beside it, or when they are predicted to end before At.
type Shadow struct {
	Job      jobs.ID
	Instance string
	Devices  []resource.DeviceID
	VRAM     resource.Bytes // per device
	RAM      resource.Bytes
	At       time.Time // when enough is predicted to be free; zero: nobody knows
	Since    time.Time // when the job began to wait for memory
	Draining bool      // it waited too long: nothing more starts on its devices
}

// ReleaseAsk asks an idle worker's plugin to give memory back (its release())
// before it is stopped.
type ReleaseAsk struct {
	Instance string
	Asker    string
}

// Thrash names two instances that keep pushing each other out of a device.
type Thrash struct {
	Device resource.DeviceID
	A, B   string
}

// Rank is the arithmetic of one job's place in the order; higher goes first.
type Rank struct {
	Priority float64 `json:"priority"`
	Age      float64 `json:"age"`   // bounded points for waiting
	Share    float64 `json:"share"` // less for those who used much lately
	Total    float64 `json:"total"`
	// Affinity is true when the job may go before its rank because its worker is loaded.
	Affinity bool `json:"affinity"`
}

// Ranker is a Policy that can explain its order.
type Ranker interface {
	Rank(v *View, g *GroupView, r *jobs.Ready) Rank
}
