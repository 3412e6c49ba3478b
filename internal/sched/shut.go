package sched

import (
	"fmt"
	"slices"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// Shut says which instances start nothing until somebody has looked, a sentence
// each. It names no cause from outside the daemon: anybody may read it. Safe
// from any goroutine; never waits for the loop.
func (s *Scheduler) Shut() []string {
	if p := s.shut.Load(); p != nil {
		return *p
	}
	return nil
}

// publishShut has Shut tell how things are now.
func (l *loop) publishShut() {
	var now []string
	for _, in := range l.order {
		if why := in.whyShut(); why != "" {
			now = append(now, why)
		}
	}
	if !slices.Equal(now, l.s.Shut()) {
		l.s.shut.Store(&now)
	}
}

func (in *inst) whyShut() string {
	switch {
	case in.failed != "":
		return fmt.Sprintf("plugin %s is shut: its worker failed to start %d times in a row; load or reload it to try again", in.name, in.failures)
	case in.gaveUp == "":
		return ""
	case in.state == supervisor.Unkillable:
		return "plugin " + in.name + " is shut: processes of its worker cannot be killed"
	}
	return "plugin " + in.name + " is shut: its worker ended too often; load or reload it to try again"
}

// tellInstanceQuarantined tells that an instance is shut until a person looks.
func (l *loop) tellInstanceQuarantined(in *inst, why string) {
	l.publishShut() // before anybody hears of it
	l.s.emit(events.Draft{Kind: events.SchedulerQuarantined, Instance: in.name, Data: map[string]any{"reason": why}})
}
