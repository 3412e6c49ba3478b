package sched

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// reportLedger adds the sums of the ledger and what they are made of.
func (l *loop) reportLedger(st *SchedulerState) {
	st.Devices, st.Accounts, st.Leases = slices.Clone(l.devs), l.workerAccounts(), l.leaseStates()
	st.MonitorInstance = l.monitorInstance
	if l.shadow != nil {
		copied := *l.shadow
		st.Shadow = &copied
	}
	queued := make(map[string]int)
	for _, g := range l.s.o.Queue.Groups(1) {
		queued[g.Instance] = g.Pending
	}
	for _, name := range slices.Sorted(maps.Keys(l.blocks)) {
		st.Groups = append(st.Groups, WaitingGroup{Instance: name, Queued: queued[name], Block: *l.blocks[name]})
	}
	st.Quarantined = make(map[string]string)
	for _, in := range l.order {
		if why := orElse(in.failed, in.gaveUp); why != "" {
			st.Quarantined[in.name] = why
		}
	}
}

// rank adds the arithmetic of the job's place, where the policy has one.
func (l *loop) rank(e *Explanation, job *jobs.Job) {
	ranker, ok := (*l.s.policy.Load()).(Ranker)
	if !ok {
		return
	}
	now := l.s.o.Now()
	v := l.view(now)
	i := slices.IndexFunc(v.Groups, func(g GroupView) bool { return g.Instance == job.Spec.Instance })
	if i < 0 {
		return
	}
	r := ranker.Rank(&v, &v.Groups[i], &jobs.Ready{ID: job.ID, Seq: job.Seq, Priority: job.Spec.Priority, Submitter: job.Submitter,
		CreatedAt: job.CreatedAt, Attempt: job.Attempt + 1})
	e.Rank = &r
}

// Profile says what is known about an instance's needs.
func (s *Scheduler) Profile(ctx context.Context, instance string) (ProfileState, error) {
	inst, man, err := s.o.Catalog.Instance(instance)
	if err != nil {
		return ProfileState{}, err
	}
	st := ProfileState{Instance: instance, Plugin: man.Name, ConfigHash: learn.ConfigHash(inst.Config)}
	ok := s.ask(ctx, func(l *loop) {
		st.Need = l.need(l.inst(instance))
		for k, p := range l.profiles {
			if k.Plugin == man.Name {
				st.Profiles = append(st.Profiles, p)
			}
		}
	})
	if !ok {
		return ProfileState{}, orStopping(ctx)
	}
	slices.SortFunc(st.Profiles, func(a, b learn.Profile) int {
		if c := b.UpdatedAt.Compare(a.UpdatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ConfigHash+"/"+a.DeviceModel, b.ConfigHash+"/"+b.DeviceModel)
	})
	return st, nil
}

// ResetProfile forgets everything that was learned about the instance's plugin
// and returns how many profiles that were.
func (s *Scheduler) ResetProfile(ctx context.Context, instance string) (int, error) {
	_, man, err := s.o.Catalog.Instance(instance)
	if err != nil {
		return 0, err
	}
	n := 0
	ok := s.ask(ctx, func(l *loop) {
		for k := range l.profiles {
			if k.Plugin == man.Name {
				delete(l.profiles, k)
				delete(l.times, k)
				delete(l.toldProfile, k)
				delete(l.unsaved, k)
				n++
			}
		}
	})
	if !ok {
		return 0, orStopping(ctx)
	}
	draft := events.Draft{Kind: events.ProfileChanged, Instance: instance, Data: map[string]any{"plugin": man.Name, "reset": true}}
	if s.o.Profiles == nil {
		s.emit(draft)
		return n, nil
	}
	if _, err := s.o.Profiles.DeleteProfiles(ctx, man.Name, draft); err != nil {
		return n, fmt.Errorf("cannot forget what was learned about %q: %w", man.Name, err)
	}
	return n, nil
}
