package tree

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// shimmed is a sandbox whose tree hangs below a shim: the init of a PID
// namespace, which takes everything with it, or a subreaper, below which a kill
// loop finds everything.
type shimmed struct {
	h        *Host
	strategy Strategy
	name     string
	c        Confine
	leaf     *leaf // nil: no cgroup; else all of it, shim included, is in there
	leader         // the worker itself, a child of the shim

	shim    *exec.Cmd
	shimID  proc.ID
	life    *os.File // plan pipe; closing it makes the shim end everything
	status  *os.File // receipts
	dec     *json.Decoder
	gone    chan struct{} // closed when the shim was reaped
	started bool
	noProc  string
	facts   []isolation.Fact // of the Box

	once sync.Once
	err  error
}

func (h *Host) newShimmed(s Strategy, name string, c Confine) *shimmed {
	return &shimmed{h: h, strategy: s, name: name, c: c, gone: make(chan struct{})}
}

// probeShim runs the life of one sandbox of that strategy.
func (h *Host) probeShim(ctx context.Context, s Strategy) error {
	sb := h.newShimmed(s, "probe", Confine{})
	defer sb.Close()
	return h.Try(ctx, sb)
}

// namespaces asks for a PID namespace, and those of the box; without root they
// come with a user namespace that maps nobody but ourselves.
func namespaces(a *syscall.SysProcAttr, box *Box) {
	a.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	if box != nil {
		a.Cloneflags |= syscall.CLONE_NEWIPC
		if box.Network != HostNetwork {
			a.Cloneflags |= syscall.CLONE_NEWNET
		}
	}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		// An exec as a user other than root drops what the user namespace gave; the
		// shim needs it for its /proc and drops it itself before the worker.
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_NET_ADMIN}
	}
	// The kernel ends the init, and so the namespace, when our thread dies with the daemon.
	a.Pdeathsig = syscall.SIGKILL
}

func (s *shimmed) Start(cmd *exec.Cmd) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	planR, planW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the shim: %w", err)
	}
	defer planR.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		planW.Close()
		return fmt.Errorf("cannot start the shim: %w", err)
	}
	defer statusW.Close()
	s.life, s.status, s.dec = planW, statusR, json.NewDecoder(statusR)

	n := 3 + len(cmd.ExtraFiles)
	marker := s.h.marker(s.name)
	shim := s.h.helper(VerbShim, "--plan", strconv.Itoa(n), "--status", strconv.Itoa(n+1))
	shim.Env = append(shim.Env, marker)
	shim.Stdin, shim.Stdout, shim.Stderr = cmd.Stdin, cmd.Stdout, cmd.Stderr
	shim.ExtraFiles = append(cmd.ExtraFiles[:len(cmd.ExtraFiles):len(cmd.ExtraFiles)], planR, statusW)
	shim.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.strategy == PIDNS {
		namespaces(shim.SysProcAttr, s.c.Box)
	}
	if s.leaf != nil {
		shim.SysProcAttr.UseCgroupFD, shim.SysProcAttr.CgroupFD = true, int(s.leaf.fd.Fd())
	}
	if err := s.h.spawnerFor(s.c).start(shim); err != nil {
		return fmt.Errorf("cannot start the shim: %w", err)
	}
	s.shim, s.started = shim, true
	statusW.Close()
	go func() { // joined by Close
		_ = shim.Wait() // its receipts say what there is to know
		close(s.gone)
	}()
	plan := Plan{
		Strategy: s.strategy, Path: cmd.Path, Args: cmd.Args, Env: cleanEnv(cmd.Env, marker),
		Dir: cmd.Dir, Files: n, DeathSig: s.c.DeathSig, Box: s.c.Box,
	}
	return s.begin(plan)
}

// shimTimeout is how long a shim may take to start the worker.
const shimTimeout = 30 * time.Second

// begin hands over the plan and learns which process is the worker.
func (s *shimmed) begin(plan Plan) error {
	st, err := proc.Read(s.shim.Process.Pid)
	if err == nil {
		s.shimID = st.ID()
		err = writeRecord(s.h.recordPath(s.name), s.shimID)
	}
	if err == nil {
		err = json.NewEncoder(s.life).Encode(plan)
	}
	if err != nil {
		return fmt.Errorf("cannot brief the shim: %w", err)
	}
	// An exec can hang (a file server that is away); the daemon must not.
	if err := s.status.SetReadDeadline(time.Now().Add(shimTimeout)); err != nil {
		return fmt.Errorf("cannot bound the start of the shim: %w", err)
	}
	for {
		var r Receipt
		if err := s.dec.Decode(&r); err != nil {
			return fmt.Errorf("cannot start %s: no word from the shim: %w", plan.Path, err)
		}
		switch {
		case r.Error != "":
			return fmt.Errorf("cannot start %s: %s", plan.Path, r.Error)
		case r.NoProc != "":
			s.noProc = r.NoProc
		case r.Facts != nil:
			s.facts = r.Facts
		case r.Started != 0:
			return errors.Join(s.adopt(r.Started), s.status.SetReadDeadline(time.Time{}))
		}
	}
}

// adopt finds the worker in our own process table: right after the start it is
// the shim's only child. The pid that the shim gave is one of the shim's own
// namespace; in ours that number may belong to anybody.
func (s *shimmed) adopt(pid int) error {
	t, err := proc.All()
	if err != nil {
		return err
	}
	var st proc.Stat
	for _, c := range t {
		if c.PPID == s.shimID.PID && (s.strategy == PIDNS || c.PID == pid) {
			st = c
		}
	}
	s.leader.begin(st.ID()) // zero when it has ended already: Wait tells how
	return nil
}

// Wait returns when the worker ended; the shim may go on until its tree is empty.
func (s *shimmed) Wait() (isolation.ExitStatus, error) {
	if !s.started {
		return isolation.ExitStatus{}, errors.New("cannot wait: nothing was started")
	}
	for {
		var r Receipt
		if err := s.dec.Decode(&r); err != nil {
			// Without a receipt the shim itself was killed, and the worker with it.
			return isolation.ExitStatus{Signal: syscall.SIGKILL}, nil
		}
		if r.Exited {
			return isolation.ExitStatus{Code: r.Code, Signal: syscall.Signal(r.Signal)}, nil
		}
	}
}

// members selects the tree's processes: those below the shim, and those that
// carry the marker after somebody killed the shim.
func (s *shimmed) members(t proc.Table) []proc.Stat {
	found := map[int]proc.Stat{}
	for _, b := range s.below(t) {
		found[b.PID] = b
	}
	if s.shimGone() {
		marker := s.h.marker(s.name)
		for pid, st := range t {
			if pid != os.Getpid() && st.Start >= s.shimID.Start && proc.HasEnvPrefix(pid, marker) {
				found[pid] = st
			}
		}
	}
	return values(found)
}

// below is empty once the shim is gone: its pid may be another's by then.
func (s *shimmed) below(t proc.Table) []proc.Stat {
	if t[s.shimID.PID].Start != s.shimID.Start {
		return nil
	}
	return t.Below(s.shimID.PID)
}

func (s *shimmed) shimGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

func (s *shimmed) Kill(ctx context.Context) error {
	if !s.started {
		return nil
	}
	if s.leaf != nil {
		if err := s.leaf.Kill(ctx); err != nil {
			return err
		}
	} else if s.strategy == PIDNS {
		if err := proc.Signal(s.shimID, syscall.SIGKILL); err != nil {
			return err
		}
	} else if _, err := proc.KillAll(ctx, s.members); err != nil {
		return err
	}
	// An init leaves only after its whole namespace has; a subreaper when the
	// last of its tree has ended.
	select {
	case <-s.gone:
	case <-ctx.Done():
		return fmt.Errorf("cannot end the tree of %q: %w", s.name, ctx.Err())
	}
	if s.strategy == PIDNS {
		return nil
	}
	_, err := proc.KillAll(ctx, s.members)
	return err
}

func (s *shimmed) Empty() bool {
	if !s.started {
		return true
	}
	if !s.shimGone() {
		return false
	}
	if s.leaf != nil {
		return s.leaf.Empty()
	}
	if s.strategy == PIDNS {
		return true
	}
	t, err := proc.All()
	if err != nil {
		return false
	}
	for _, m := range s.members(t) {
		if !m.Dead() {
			return false
		}
	}
	return true
}

// Dir implements Group.
func (s *shimmed) Dir() string {
	if s.leaf == nil {
		return ""
	}
	return s.leaf.dir
}

func (s *shimmed) Usage() (isolation.Usage, error) {
	if s.leaf != nil {
		return s.leaf.usage(s.shimID.PID)
	}
	u := isolation.Usage{SampledAt: time.Now()}
	t, err := proc.All()
	if err != nil {
		return u, err
	}
	for _, m := range s.below(t) {
		u.Processes++
		u.RSS += m.RSS
		u.CPUTime += m.CPU
		u.PIDs = append(u.PIDs, m.PID)
	}
	slices.Sort(u.PIDs)
	return u, nil
}

// PIDs shares one look at /proc with the other sandboxes of the host.
func (s *shimmed) PIDs() []int {
	if s.leaf != nil {
		return s.leaf.pidsBut(s.shimID.PID)
	}
	if s.strategy == PIDNS && s.shimGone() {
		return nil // its init leaves last
	}
	t, err := s.h.table()
	if err != nil {
		return nil
	}
	var pids []int
	for _, m := range s.members(t) {
		if !m.Dead() {
			pids = append(pids, m.PID)
		}
	}
	slices.Sort(pids)
	return pids
}

func (s *shimmed) Report() []isolation.Fact {
	kill := isolation.Fact{Mechanism: "tree_kill", Requested: true, InForce: true, VerifiedBy: "host probe"}
	death := isolation.Fact{Mechanism: "daemon_death", Requested: true, InForce: true, VerifiedBy: "host probe"}
	facts := []isolation.Fact{}
	switch {
	case s.leaf != nil:
		kill.Detail, death.Detail = "cgroup.kill of "+s.leaf.dir, "guardian fires cgroup.kill; parent death signal of the init"
	case s.strategy == PIDNS:
		kill.Detail = "init of a PID namespace" + s.h.rejections()
		death.Detail = "parent death signal of the init"
	default:
		kill.Detail = "kill loop below a subreaper" + s.h.rejections()
		death.Detail = "the subreaper runs the kill loop at end of file"
	}
	if s.strategy == PIDNS && s.c.Box == nil {
		facts = append(facts, isolation.Fact{Mechanism: "pid_namespace_proc", Requested: true, InForce: s.noProc == "", VerifiedBy: "shim receipt", Detail: s.noProc})
	}
	return append(append(facts, kill, death, s.leader.session()), s.facts...)
}

func (s *shimmed) Close() error {
	s.once.Do(func() {
		if s.leaf != nil {
			defer func() { s.err = errors.Join(s.err, s.leaf.Close()) }()
		}
		if s.life == nil {
			return
		}
		s.life.Close() // a shim that is still there ends its tree now
		if s.started {
			<-s.gone
		}
		s.status.Close()
		s.leader.release()
		s.err = removeRecord(s.h.recordPath(s.name))
	})
	return s.err
}
