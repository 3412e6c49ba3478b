// Package isolation confines a worker's process tree and ends it as a whole.
// A Tier makes Sandboxes; a Sandbox starts one process, says what is really in
// force, and kills everything that came out of it. It knows no worker, job or
// protocol. Start with Tier and Sandbox; package tree has the ways to end a
// whole tree that the tiers share; tiertest is the conformance suite.
package isolation

import (
	"context"
	"os/exec"
	"syscall"
	"time"
)

// Spec is what one sandbox must hold.
type Spec struct {
	Name      string  // unique per process: "<instance>.<generation>"
	MemoryMax int64   // bytes, 0: no limit
	PidsMax   int     // processes and threads, 0: no limit
	CPUWeight int     // share under load, 1 to 10000, 0: the kernel's 100
	CPUMax    float64 // processors, 0: no limit
	IOWeight  int     // share of the disks under load, 1 to 10000, 0: the kernel's 100
	NoFile    int     // open files of one process, 0: inherited
	Nice      int     // 0: inherited
	View      View
}

// View is what a sandboxed worker sees of the machine. Paths are absolute. Tiers
// below sandboxed do not look at it.
type View struct {
	Read    []string // seen and not writable, also below what the tier hides
	Own     []string // directories of this worker alone
	Shared  []string // directories that all workers may write
	Nodes   []string // device nodes of the accelerators it was granted
	Network string   // "host" (or empty), "none", "loopback"
}

// GroupLimits names the limits asked for that only a cgroup can hold.
func (s Spec) GroupLimits() []string {
	var names []string
	for _, l := range []struct {
		name  string
		asked bool
	}{
		{"memory", s.MemoryMax > 0}, {"pids", s.PidsMax > 0}, {"cpu_weight", s.CPUWeight > 0},
		{"cpu_max", s.CPUMax > 0}, {"io_weight", s.IOWeight > 0},
	} {
		if l.asked {
			names = append(names, l.name)
		}
	}
	return names
}

// Fact is one row of the isolation report: what was asked, what holds, and how
// we know. Detail says why something asked for is not in force.
type Fact struct {
	Mechanism  string
	Requested  bool
	InForce    bool
	VerifiedBy string
	Detail     string
}

// Usage of a whole sandbox.
type Usage struct {
	RSS        int64         // bytes, sum over the processes
	CPUTime    time.Duration // of the processes alive now; it falls when one ends
	Processes  int
	PIDs       []int // of the tree as the host numbers them, sorted
	SampledAt  time.Time
	OOMKills   int64 // from memory.events where there is a cgroup with memory
	MemoryPeak int64 // bytes, 0 where nothing measures it
}

// ExitStatus is how the leader of a sandbox ended. Signal is 0 after an exit.
type ExitStatus struct {
	Code   int
	Signal syscall.Signal
}

// Tier makes sandboxes of one strength. Safe for concurrent use.
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

// Sandbox is one process tree. Start, Wait and Close belong to one owner; the
// other methods are safe from any goroutine between Start and Close.
type Sandbox interface {
	// Start starts cmd inside, in its own session. The sandbox owns the process
	// from then on: call Wait here, never cmd.Wait. Standard streams must be
	// files (or nil).
	Start(cmd *exec.Cmd) error
	// PID is the leader as the host sees it; 0 before Start.
	PID() int
	// Wait blocks until the leader has ended and reaps it. Others of the tree may
	// still run. Call it once.
	Wait() (ExitStatus, error)
	// Signal sends sig to the leader only, by pidfd. A leader that is gone is no error.
	Signal(sig syscall.Signal) error
	Usage() (Usage, error)
	// PIDs lists the processes of the tree as the host numbers them, sorted, those
	// that left their parent or session included. Cheaper than Usage; it may be a
	// quarter of a second old. Also safe after Close: none then.
	PIDs() []int
	// Kill ends the whole tree and returns when it is empty, or when ctx ends (an
	// error then names the survivors). Killing an empty tree is fine.
	Kill(ctx context.Context) error
	// Empty reports whether no process of the tree is left.
	Empty() bool
	Report() []Fact
	// Close removes what Prepare made. Idempotent; after Kill and Wait.
	Close() error
}
