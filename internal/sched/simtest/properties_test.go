package simtest

import (
	"testing"

	"pgregory.net/rapid"
)

func TestRandom_RightNeeds_NothingRunsOutOfMemoryAndAllComplete(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r, _ := simulate(rt, shape{jobs: 120}.draw(rt), subject())
		completes(rt, r)
	})
}

func TestRandom_Killed_NoOrphanNoLostNoDoubledJob(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		simulate(rt, shape{jobs: 60, unknown: true, kills: true}.draw(rt), subject())
	})
}

func TestRandom_AnythingGoesWrong(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		simulate(rt, shape{jobs: 60, unknown: true, wrong: true, foreign: true, broken: true, leaks: true, silence: true, kills: true}.draw(rt), subject())
	})
}
