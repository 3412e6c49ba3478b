// Package tree starts a process and ends everything that came out of it. Three
// strategies, best first, chosen by trying them: a cgroup v2 leaf with
// cgroup.kill, a PID namespace whose init is a shim, a subreaper shim with a
// kill loop. A Host is what the tiers of one daemon share: the strategy, the
// threads that start processes and the guardian that outlives the daemon by a
// few milliseconds. Start with Host.Sandbox; one file a strategy.
package tree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// Strategy is a way to end a whole tree.
type Strategy string

const (
	Cgroup    Strategy = "cgroup"
	PIDNS     Strategy = "pidns"
	Subreaper Strategy = "subreaper"
)

// The hidden verbs of the program that Options.Reexec names.
const (
	VerbShim     = "worker-shim"
	VerbGuardian = "worker-guardian"
)

// markerKey is an environment variable that every process of a sandbox inherits;
// its value begins with the Host's identity. It finds what has lost its parents.
const markerKey = "CJM_SANDBOX"

// Options of a Host.
type Options struct {
	// StateDir is the daemon's identity: what another daemon on another state
	// directory left is never touched. Records of sandboxes are kept below it.
	StateDir string
	// Reexec is a program, with leading arguments, that runs shim.Main and
	// guardian.Main for the two verbs. Nil: this program, even after its file was
	// replaced by an upgrade.
	Reexec []string
	// ReexecEnv is the whole environment of that program, beside the marker.
	ReexecEnv []string
	// Strategies to try, in order. Nil: Cgroup, PIDNS, Subreaper.
	Strategies []Strategy
	// CgroupParent is the writable cgroup v2 directory to work below. "": the
	// daemon's own cgroup, as /proc says.
	CgroupParent string
	Log          *zap.Logger // nil: none
}

// Host starts and ends trees. Safe for concurrent use.
type Host struct {
	o  Options
	id string

	spawn    spawner // plain
	confined spawner // its thread has no_new_privs

	mu       sync.Mutex
	chosen   Strategy          // guarded by mu; "" before the first probe
	rejected map[string]string // guarded by mu; strategy → why not
	missing  map[string]string // guarded by mu; controller → why not
	base     string            // guarded by mu; cgroup directory of this Host
	guard    *guard            // guarded by mu; nil before the first sandbox
	closed   bool              // guarded by mu

	tableMu sync.Mutex // held across the look at /proc: others wait for that one
	last    proc.Table // guarded by tableMu, never changed
	lastAt  time.Time  // guarded by tableMu
}

// tableAge is how old a look at /proc may be for those who only want to know
// which processes belong where. A process needs longer than this from its start
// to its first allocation on a device.
const tableAge = 250 * time.Millisecond

// table returns a look at /proc that all sandboxes share.
func (h *Host) table() (proc.Table, error) {
	h.tableMu.Lock()
	defer h.tableMu.Unlock()
	if time.Since(h.lastAt) < tableAge {
		return h.last, nil
	}
	t, err := proc.All()
	if err != nil {
		return nil, err
	}
	h.last, h.lastAt = t, time.Now()
	return t, nil
}

// New returns a Host. Nothing is started or probed yet.
func New(o Options) (*Host, error) {
	if o.StateDir == "" {
		return nil, errors.New("cannot make an isolation host: no state directory")
	}
	dir, err := filepath.Abs(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("cannot make an isolation host: %w", err)
	}
	o.StateDir = dir
	if o.Strategies == nil {
		o.Strategies = []Strategy{Cgroup, PIDNS, Subreaper}
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	sum := sha256.Sum256([]byte(dir))
	return &Host{
		o: o, id: hex.EncodeToString(sum[:6]), rejected: map[string]string{},
		confined: spawner{noNewPrivs: true},
	}, nil
}

// Strategy returns the one in use, trying them on the first call. The error
// names what each of them lacks.
func (h *Host) Strategy(ctx context.Context) (Strategy, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.strategyLocked(ctx)
}

// strategyLocked holds mu across the probe: everybody else needs its outcome.
func (h *Host) strategyLocked(ctx context.Context) (Strategy, error) {
	if h.closed {
		return "", errors.New("cannot start processes: the isolation host is closed")
	}
	if h.chosen != "" {
		return h.chosen, nil
	}
	var all []error
	for _, s := range h.o.Strategies {
		var err error
		switch s {
		case Cgroup:
			err = h.probeCgroupLocked(ctx)
		case PIDNS, Subreaper:
			err = h.probeShim(ctx, s)
		default:
			err = errors.New("no such strategy")
		}
		if err == nil {
			h.chosen = s
			h.o.Log.Info("process trees are ended by", zap.String("strategy", string(s)), zap.Any("rejected", h.rejected))
			return s, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		h.rejected[string(s)] = err.Error()
		all = append(all, fmt.Errorf("%s: %w", s, err))
	}
	return "", fmt.Errorf("cannot end process trees on this machine: %w", errors.Join(all...))
}

// Confine is what a tier wants of the start itself.
type Confine struct {
	NoNewPrivs bool
	DeathSig   bool // the leader gets SIGKILL when the daemon dies
	Box        *Box // the worker runs in namespaces of its own, below a shim that makes them
}

// Sandbox prepares a place for one tree. name is unique among those not closed.
func (h *Host) Sandbox(ctx context.Context, name string, c Confine) (isolation.Sandbox, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.strategyLocked(ctx)
	if err != nil {
		return nil, err
	}
	if c.Box != nil && s == Subreaper {
		return nil, fmt.Errorf("cannot make namespaces: %s", h.rejected[string(PIDNS)])
	}
	if s != Cgroup {
		return h.newShimmed(s, name, c), nil
	}
	if h.guard == nil {
		g, err := startGuard(h, h.base)
		if err != nil {
			return nil, err
		}
		h.guard = g
	}
	l, err := h.newLeaf(h.base, name, c)
	if err != nil || c.Box == nil {
		return l, err
	}
	boxed := h.newShimmed(PIDNS, name, c)
	boxed.leaf = l
	return boxed, nil
}

// Close ends the guardian and the starting threads. Every sandbox is closed before.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	var err error
	if h.guard != nil {
		err = h.guard.close()
	}
	if h.base != "" {
		err = errors.Join(err, removeTree(h.base))
	}
	h.spawn.close()
	h.confined.close()
	return err
}

// helper is a command that runs this program for one of the verbs.
func (h *Host) helper(verb string, args ...string) *exec.Cmd {
	re := h.o.Reexec
	if re == nil {
		re = []string{"/proc/self/exe"}
	}
	cmd := exec.Command(re[0], slices.Concat(re[1:], []string{verb}, args)...)
	cmd.Env = append([]string{}, h.o.ReexecEnv...)
	if h.o.Reexec == nil {
		cmd.Args[0] = filepath.Base(os.Args[0]) // what ps shows
	}
	return cmd
}

// baseName is unique per process of the daemon: the guardian of one that has
// just died must not reach what its successor starts.
func (h *Host) baseName() string {
	self, _ := proc.Read(os.Getpid()) // zero start time when /proc fails: the pid alone then
	return fmt.Sprintf("cjmd-%s.%d-%d", h.id, os.Getpid(), self.Start)
}

func (h *Host) spawnerFor(c Confine) *spawner {
	if c.NoNewPrivs {
		return &h.confined
	}
	return &h.spawn
}

// marker is the environment entry of one sandbox.
func (h *Host) marker(name string) string {
	return markerKey + "=" + h.id + "/" + dirName(name) + "/"
}

// rejections says in one line why better strategies are not in use.
func (h *Host) rejections() string {
	var s string
	for _, name := range []Strategy{Cgroup, PIDNS, Subreaper} {
		if why, ok := h.rejected[string(name)]; ok {
			s += fmt.Sprintf("; no %s: %s", name, why)
		}
	}
	return s
}
