// Package basic is the tier against accidents: resource limits, niceness, a first
// place in the queue of the kernel's OOM killer (all set by package outside), no
// new privileges, and a death signal from the daemon. It holds no memory or
// process limit; a report says so where one was asked for.
package basic

import (
	"context"
	"os/exec"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/outside"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

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

func (s *sandbox) Start(cmd *exec.Cmd) error {
	if err := s.Sandbox.Start(cmd); err != nil {
		return err
	}
	pid := s.PID()
	if pid == 0 { // ended already; Wait tells how
		return nil
	}
	s.facts = append(outside.Confine(pid, s.spec),
		isolation.Fact{Mechanism: "parent_death_signal", Requested: true, InForce: true, VerifiedBy: "start", Detail: "SIGKILL"})
	for _, asked := range s.spec.GroupLimits() {
		s.facts = append(s.facts, isolation.Fact{Mechanism: asked, Requested: true, Detail: "tier basic holds no such limit; that needs tier contained and a cgroup with controllers"})
	}
	return nil
}

func (s *sandbox) Report() []isolation.Fact { return append(s.Sandbox.Report(), s.facts...) }
