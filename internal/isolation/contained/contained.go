// Package contained is the tier against hogs, fork bombs and escapes: a cgroup v2
// leaf per worker that holds memory, processes, processor and I/O, on top of what
// tier basic sets. Where a controller is not delegated its limits are told as not
// in force; the kill of the whole tree needs none.
package contained

import (
	"context"
	"fmt"
	"os/exec"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/cgroup"
	"github.com/cjmd/cjmd/internal/isolation/outside"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

type tier struct{ host *tree.Host }

// New returns the tier on host, which the caller closes.
func New(host *tree.Host) isolation.Tier { return tier{host: host} }

func (t tier) Name() string { return "contained" }

// Probe needs a writable cgroup v2 hierarchy, with or without controllers.
func (t tier) Probe(ctx context.Context) error {
	s, err := t.host.Strategy(ctx)
	if err == nil && s != tree.Cgroup {
		err = fmt.Errorf("cgroup v2 cannot be used: %s", t.host.Rejected(tree.Cgroup))
	}
	return err
}

func (t tier) Reclaim(ctx context.Context) (int, error) { return t.host.Reclaim(ctx) }

func (t tier) Prepare(ctx context.Context, spec isolation.Spec) (isolation.Sandbox, error) {
	if err := t.Probe(ctx); err != nil {
		return nil, err
	}
	sb, err := t.host.Sandbox(ctx, spec.Name, tree.Confine{NoNewPrivs: true, DeathSig: true})
	if err != nil {
		return nil, err
	}
	// Before the start: nothing of the worker runs without its limits.
	return &sandbox{Sandbox: sb, spec: spec, limits: Limit(t.host, sb, spec)}, nil
}

// Limit sets the limits of a sandbox whose tree is a cgroup.
func Limit(host *tree.Host, sb isolation.Sandbox, spec isolation.Spec) []isolation.Fact {
	group, ok := sb.(tree.Group)
	if !ok || group.Dir() == "" {
		var facts []isolation.Fact
		for _, asked := range spec.GroupLimits() {
			facts = append(facts, isolation.Fact{Mechanism: asked, Requested: true, Detail: "no cgroup v2: " + host.Rejected(tree.Cgroup)})
		}
		return facts
	}
	return cgroup.Apply(group.Dir(), cgroup.Limits{
		MemoryMax: spec.MemoryMax, PidsMax: spec.PidsMax,
		CPUWeight: spec.CPUWeight, CPUMax: spec.CPUMax, IOWeight: spec.IOWeight,
	}, host.MissingController)
}

type sandbox struct {
	isolation.Sandbox
	spec   isolation.Spec
	limits []isolation.Fact
	facts  []isolation.Fact // written by Start, before anybody asks for a report
}

func (s *sandbox) Start(cmd *exec.Cmd) error {
	if err := s.Sandbox.Start(cmd); err != nil {
		return err
	}
	if pid := s.PID(); pid != 0 { // else it has ended already; Wait tells how
		s.facts = append(outside.Confine(pid, s.spec),
			isolation.Fact{Mechanism: "parent_death_signal", Requested: true, InForce: true, VerifiedBy: "start", Detail: "SIGKILL"})
	}
	return nil
}

func (s *sandbox) Report() []isolation.Fact {
	return append(append(s.Sandbox.Report(), s.limits...), s.facts...)
}
