package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cjmd/cjmd/internal/isolation"
)

// tierNames are the tiers by their number in a manifest, weakest first.
func tierNames() []string { return []string{"none", "basic", "contained", "sandboxed"} }

// noticed reports whether a tier changes what a plugin sees of the machine.
// "auto" is the strongest that does not (docs/decisions/0040), unless the wish
// requires what only such a tier has.
func noticed(name string, wish IsolationWish) bool {
	required := func(what string) bool { return slices.Contains(wish.Require, what) }
	return name == "sandboxed" && !required("fs") && !required("net") && !required("gpu")
}

// TierState says whether a tier can be had on this machine.
type TierState struct {
	Name string
	Why  string // what is missing, "" when nothing is
	Auto bool   // "auto" means this one, for a wish that requires nothing
}

// Tiers tries every tier, once, and tells them weakest first.
func (s *Supervisor) Tiers(ctx context.Context) []TierState {
	out := make([]TierState, len(s.o.Tiers))
	auto := -1
	for i, t := range s.o.Tiers {
		out[i].Name = t.Name()
		if err := t.Probe(ctx); err != nil {
			out[i].Why = err.Error()
		} else if !noticed(t.Name(), IsolationWish{}) {
			auto = i
		}
	}
	if auto >= 0 {
		out[auto].Auto = true
	}
	return out
}

// tier chooses the isolation of a start: the one asked for or, for "auto", the
// strongest that works here and is not noticed. One that cannot be had is an error
// that names what is missing, never a weaker one in silence.
func (s *Supervisor) tier(ctx context.Context, wish IsolationWish) (isolation.Tier, error) {
	if wish.Tier == "" || wish.Tier == "auto" {
		var errs []error
		for i := len(s.o.Tiers) - 1; i >= 0; i-- {
			t := s.o.Tiers[i]
			if noticed(t.Name(), wish) {
				continue
			}
			err := t.Probe(ctx)
			if err == nil {
				return t, nil
			}
			errs = append(errs, fmt.Errorf("tier %s: %w", t.Name(), err))
		}
		return nil, errors.Join(errs...)
	}
	name := wish.Tier
	for i, n := range tierNames() {
		if wish.Tier == fmt.Sprint(i) {
			name = n
		}
	}
	for _, t := range s.o.Tiers {
		if t.Name() == name {
			if err := t.Probe(ctx); err != nil {
				return nil, fmt.Errorf("tier %s is not available: %w", name, err)
			}
			return t, nil
		}
	}
	return nil, fmt.Errorf("tier %s is not available in this daemon", name)
}
