package sched

import (
	"context"
	"time"
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
