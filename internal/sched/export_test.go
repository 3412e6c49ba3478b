package sched

import (
	"context"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
)

// PassLoop is a loop that a benchmark drives pass by pass, without Run.
type PassLoop struct{ l *loop }

func NewPassLoop(s *Scheduler, work context.Context) PassLoop { return PassLoop{newLoop(s, work)} }

func (p PassLoop) Pass() { p.l.pass() }

// Occupy makes an instance look as if n jobs ran on it.
func (p PassLoop) Occupy(instance string, n int) { p.l.inst(instance).running = n }

// ChangeEverything makes the next pass read workers, monitor and catalogue again.
func (p PassLoop) ChangeEverything() {
	p.l.workersChanged, p.l.gateChanged, p.l.catalogChanged = true, true, true
	p.l.workersSeen = time.Time{}
}

// Kept reports whether the last pass kept the plan of an earlier one.
func (t *Stepper) Kept() bool { return t.l.kept }

// Afresh is what the policy decides about this moment; nothing comes of it.
func (t *Stepper) Afresh() Plan { return (*t.l.s.policy.Load()).Decide(t.l.view(t.l.s.o.Now())) }

// Blocks is what the queue was told.
func (t *Stepper) Blocks() map[string]*jobs.Block { return t.l.blocks }

// Shadow is the reservation in force.
func (t *Stepper) Shadow() *Shadow { return t.l.shadow }

// Moment is the view of this moment, as a policy would get it.
func (t *Stepper) Moment() View { return t.l.view(t.l.s.o.Now()) }
