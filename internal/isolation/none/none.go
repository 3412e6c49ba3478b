// Package none is the tier that confines nothing: a worker has its own session,
// a clean environment and its own standard streams, and its tree still ends as
// a whole.
package none

import (
	"context"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

type tier struct{ host *tree.Host }

// New returns the tier on host, which the caller closes.
func New(host *tree.Host) isolation.Tier { return tier{host: host} }

func (t tier) Name() string { return "none" }

func (t tier) Probe(ctx context.Context) error {
	_, err := t.host.Strategy(ctx)
	return err
}

func (t tier) Reclaim(ctx context.Context) (int, error) { return t.host.Reclaim(ctx) }

func (t tier) Prepare(ctx context.Context, spec isolation.Spec) (isolation.Sandbox, error) {
	sb, err := t.host.Sandbox(ctx, spec.Name, tree.Confine{})
	if err != nil {
		return nil, err
	}
	return &sandbox{Sandbox: sb, spec: spec}, nil
}

type sandbox struct {
	isolation.Sandbox
	spec isolation.Spec
}

// Report adds every limit that was asked for and that this tier does not hold.
func (s *sandbox) Report() []isolation.Fact {
	facts := s.Sandbox.Report()
	asked := s.spec.GroupLimits()
	if s.spec.NoFile > 0 {
		asked = append(asked, "nofile")
	}
	if s.spec.Nice != 0 {
		asked = append(asked, "nice")
	}
	for _, name := range asked {
		facts = append(facts, isolation.Fact{Mechanism: name, Requested: true, Detail: "tier none holds no limits"})
	}
	return facts
}
