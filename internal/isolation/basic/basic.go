// Package basic is the tier against accidents: resource limits (never on address
// space or on the number of processes, which break GPU runtimes), niceness, a
// first place in the queue of the kernel's OOM killer, no new privileges, and a
// death signal from the daemon. It holds no memory or process limit; a report
// says so where one was asked for.
package basic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

// oomScoreAdj makes the kernel choose a worker before the daemon when memory
// runs out. Raising it needs no privilege.
const oomScoreAdj = 500

type tier struct{ host *tree.Host }

// New returns the tier on host, which the caller closes.
func New(host *tree.Host) isolation.Tier { return tier{host: host} }

func (t tier) Name() string { return "basic" }

// Probe needs a way to end trees; the other mechanisms exist on every kernel
// that has pidfds and are read back at each start.
func (t tier) Probe(ctx context.Context) error {
	_, err := t.host.Strategy(ctx)
	return err
}

func (t tier) Reclaim(ctx context.Context) (int, error) { return t.host.Reclaim(ctx) }

func (t tier) Prepare(ctx context.Context, spec isolation.Spec) (isolation.Sandbox, error) {
	sb, err := t.host.Sandbox(ctx, spec.Name, tree.Confine{NoNewPrivs: true, DeathSig: true})
	if err != nil {
		return nil, err
	}
	return &sandbox{Sandbox: sb, spec: spec}, nil
}

type sandbox struct {
	isolation.Sandbox
	spec  isolation.Spec
	facts []isolation.Fact // written by Start, before anybody asks for a report
}

// Start sets the limits from outside right after the exec: a worker runs no
// code of its plugin before the daemon says hello, which comes later. What could
// not be set is in the report.
func (s *sandbox) Start(cmd *exec.Cmd) error {
	if err := s.Sandbox.Start(cmd); err != nil {
		return err
	}
	pid := s.PID()
	if pid == 0 { // ended already; Wait tells how
		return nil
	}
	s.limit("core", unix.RLIMIT_CORE, 0, true)
	s.limit("nofile", unix.RLIMIT_NOFILE, uint64(s.spec.NoFile), s.spec.NoFile > 0)
	s.nice(pid)
	s.oomScore(pid)
	s.noNewPrivs(pid)
	s.facts = append(s.facts, isolation.Fact{Mechanism: "parent_death_signal", Requested: true, InForce: true, VerifiedBy: "start", Detail: "SIGKILL"})
	for name, asked := range map[string]bool{"memory": s.spec.MemoryMax > 0, "pids": s.spec.PidsMax > 0} {
		if asked {
			s.facts = append(s.facts, isolation.Fact{Mechanism: name, Requested: true, Detail: "tier basic holds no " + name + " limit; that needs a cgroup with controllers"})
		}
	}
	if os.Geteuid() != 0 || sameUID(pid) {
		s.facts = append(s.facts, isolation.Fact{Mechanism: "own_uid", Detail: "limits are advisory: the worker has the daemon's user"})
	}
	return nil
}

func (s *sandbox) Report() []isolation.Fact { return append(s.Sandbox.Report(), s.facts...) }

// limit sets one rlimit and reads it back.
func (s *sandbox) limit(name string, resource int, value uint64, asked bool) {
	if !asked {
		return
	}
	f := isolation.Fact{Mechanism: "rlimit_" + name, Requested: true, VerifiedBy: "prlimit"}
	want := unix.Rlimit{Cur: value, Max: value}
	var got unix.Rlimit
	err := unix.Prlimit(s.PID(), resource, &want, nil)
	if err == nil {
		err = unix.Prlimit(s.PID(), resource, nil, &got)
	}
	f.InForce = err == nil && got == want
	f.Detail = detail(strconv.FormatUint(value, 10), err)
	s.facts = append(s.facts, f)
}

func (s *sandbox) nice(pid int) {
	if s.spec.Nice == 0 {
		return
	}
	f := isolation.Fact{Mechanism: "nice", Requested: true, VerifiedBy: "/proc/PID/stat"}
	err := unix.Setpriority(unix.PRIO_PROCESS, pid, s.spec.Nice)
	st, rerr := proc.Read(pid)
	f.InForce = err == nil && rerr == nil && st.Nice == s.spec.Nice
	f.Detail = detail(strconv.Itoa(s.spec.Nice), errors.Join(err, rerr))
	s.facts = append(s.facts, f)
}

func (s *sandbox) oomScore(pid int) {
	f := isolation.Fact{Mechanism: "oom_score_adj", Requested: true, VerifiedBy: "/proc/PID/oom_score_adj"}
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	want := strconv.Itoa(oomScoreAdj)
	err := os.WriteFile(path, []byte(want), 0)
	got, rerr := os.ReadFile(path)
	f.InForce = err == nil && rerr == nil && string(bytes.TrimSpace(got)) == want
	f.Detail = detail(want, errors.Join(err, rerr))
	s.facts = append(s.facts, f)
}

func (s *sandbox) noNewPrivs(pid int) {
	f := isolation.Fact{Mechanism: "no_new_privs", Requested: true, VerifiedBy: "/proc/PID/status"}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	f.InForce = err == nil && strings.Contains(string(b), "\nNoNewPrivs:\t1\n")
	f.Detail = detail("", err)
	s.facts = append(s.facts, f)
}

func detail(value string, err error) string {
	if err != nil {
		return err.Error()
	}
	return value
}

func sameUID(pid int) bool {
	var st unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil && int(st.Uid) == os.Geteuid()
}
