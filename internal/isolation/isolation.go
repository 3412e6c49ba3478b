// Package isolation confines a worker's process tree and ends it as a whole.
// A Tier makes Sandboxes; a Sandbox starts one process, says what is really in
// force, and kills everything that came out of it. It knows no worker, job or
// protocol. Start with Tier and Sandbox; tiertest is the conformance suite.
package isolation

import (
	"context"
	"os/exec"
	"time"
)

// Spec is what one sandbox must hold.
type Spec struct {
	Name      string // unique per process: "<instance>.<generation>"
	MemoryMax int64  // bytes, 0: no limit
	PidsMax   int
	NoFile    int
	Nice      int
}

// Fact is one row of the isolation report.
type Fact struct {
	Mechanism  string
	Requested  bool
	InForce    bool
	VerifiedBy string
	Detail     string
}

// Usage of a whole sandbox.
type Usage struct {
	RSS        int64 // bytes
	CPUTime    time.Duration
	Processes  int
	SampledAt  time.Time
	OOMKills   int64 // from memory.events where there is a cgroup
	MemoryPeak int64
}

// Tier makes sandboxes of one strength.
type Tier interface {
	Name() string
	// Probe tries each mechanism for real and names what is missing.
	Probe(ctx context.Context) error
	// Prepare makes a sandbox; nothing runs yet. Never weaker in silence:
	// a mechanism that cannot be had is in Report with the reason.
	Prepare(ctx context.Context, spec Spec) (Sandbox, error)
	// Reclaim kills and removes what an earlier daemon left behind and returns
	// how many processes it ended.
	Reclaim(ctx context.Context) (int, error)
}

// Sandbox is one process tree. Not safe for concurrent use except Kill and Usage.
type Sandbox interface {
	// Start starts cmd inside, in its own session. The caller owns cmd.Wait.
	Start(cmd *exec.Cmd) error
	// Signal sends sig to the leader only (by pidfd).
	Signal(sig int) error
	Usage() (Usage, error)
	// Kill ends the whole tree and returns when it is empty or ctx ends (an
	// error then names the survivors).
	Kill(ctx context.Context) error
	// Empty reports whether no process of the tree is left.
	Empty() bool
	Report() []Fact
	// Close removes what Prepare made. Idempotent; after Kill and reaping.
	Close() error
}
