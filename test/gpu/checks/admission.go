package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// hold is how long the jobs that others have to wait for take, in seconds.
const hold = 3.0

func (s *session) checkShare(ctx context.Context) (string, error) {
	ids, err := s.occupy(ctx, "alloc", "share")
	if err != nil {
		return "", err
	}
	var seen []string
	for _, id := range ids {
		f, err := s.answer(ctx, id)
		if err != nil {
			return "", err
		}
		seen = append(seen, fmt.Sprintf("pid %d on %s", f.PID, shown(f.Visible)))
	}
	return "at the same time " + strings.Join(seen, " and "), nil
}

// occupy loads the workers of plugins one after the other, then runs a job of
// hold seconds on each and waits until all execute at once.
func (s *session) occupy(ctx context.Context, plugins ...string) (ids []string, err error) {
	for _, p := range plugins {
		if _, err := s.work(ctx, p, nil); err != nil {
			return nil, err
		}
	}
	for _, p := range plugins {
		id, err := s.submit(ctx, p, 0, map[string]any{"seconds": hold})
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		if _, err := s.executing(ctx, id, 30*time.Second); err != nil {
			return nil, err
		}
	}
	for _, id := range ids {
		if j, err := s.job(ctx, id); err != nil || j.Phase != "executing" {
			return nil, errors.Join(err, fmt.Errorf("job %s had ended when the others began", id))
		}
	}
	return ids, nil
}

func (s *session) checkNeverFits(ctx context.Context) (string, error) {
	begin := time.Now()
	id, err := s.submit(ctx, "huge", 0, nil)
	if err != nil {
		return "", err
	}
	j, err := s.end(ctx, id, 10*time.Second)
	if err != nil {
		return "", err
	}
	if j.Status != "failed" || j.Error == nil || j.Error.Category != "resource" || len(j.Error.Shortfall) == 0 || j.Error.Shortfall[0].NeededMB == 0 {
		return "", fmt.Errorf("the job is %s: %s", j.Status, j.failure())
	}
	return fmt.Sprintf("after %d ms: %s", time.Since(begin).Milliseconds(), j.Error.Message), nil
}

// blocked waits until a job is held for want of the card's memory.
func (s *session) blocked(ctx context.Context, id string) (block, error) {
	j, err := s.jobWhen(ctx, id, "to be held for want of memory", 20*time.Second, func(j job) bool {
		return j.Block != nil && (j.Block.Code == "resource" || j.Block.Code == "evicting") || j.Status != "pending"
	})
	if err == nil && j.Status != "pending" {
		err = fmt.Errorf("job %s was admitted: it is %s/%s", id, j.Status, j.Phase)
	}
	if err != nil {
		return block{}, err
	}
	return *j.Block, nil
}

func (s *session) checkHold(ctx context.Context) (string, error) {
	busy, err := s.occupy(ctx, "alloc", "share")
	if err != nil {
		return "", err
	}
	began := time.Now()
	id, err := s.submit(ctx, "big", 0, nil)
	if err != nil {
		return "", err
	}
	b, err := s.blocked(ctx, id)
	if err != nil {
		return "", err
	}
	var explained struct {
		Sentence string `json:"sentence"`
	}
	if err := s.call(ctx, http.MethodGet, "/v1/jobs/"+id+"/explain", nil, &explained); err != nil {
		return "", err
	}
	gpu := slices.IndexFunc(b.Needs, func(n shortfall) bool { return n.Resource == "gpu_memory" && n.NeededMB > n.AvailableMB })
	if gpu < 0 || explained.Sentence == "" {
		return "", fmt.Errorf("the reason names no missing memory: %+v, explained as %q", b, explained.Sentence)
	}
	for _, other := range busy {
		j, err := s.end(ctx, other, 30*time.Second)
		if err != nil {
			return "", err
		}
		if j.Status != "completed" || j.Attempt != 1 {
			return "", fmt.Errorf("busy job %s was disturbed: %s at attempt %d", other, j.Status, j.Attempt)
		}
		for _, e := range s.since(began, "worker.state") {
			if to := e.text("to"); e.At.Before(j.FinishedAt) && (to == "draining" || to == "stopping" || to == "killing") {
				return "", fmt.Errorf("a worker was %s while both were busy", to)
			}
		}
	}
	if err := s.call(ctx, http.MethodPost, "/v1/jobs/"+id+"/cancel", map[string]any{"reason": "seen"}, nil); err != nil {
		return "", err
	}
	_, err = s.end(ctx, id, time.Minute)
	return fmt.Sprintf("needs %.0f MiB, %.0f are free: %s", b.Needs[gpu].NeededMB, b.Needs[gpu].AvailableMB, explained.Sentence), err
}

func (s *session) checkEvict(ctx context.Context) (string, error) {
	var pids []int
	for _, p := range []string{"alloc", "share"} {
		if _, err := s.work(ctx, p, nil); err != nil {
			return "", err
		}
		pid, err := s.pid(ctx, p)
		if err != nil {
			return "", err
		}
		pids = append(pids, pid)
	}
	from := time.Now()
	stop := s.m.watch(ctx, s.card, pids...)
	id, err := s.submit(ctx, "big", 1000, nil) // another class: workers need not have been there for long
	if err != nil {
		stop()
		return "", err
	}
	f, err := s.answer(ctx, id)
	readings := stop()
	if err != nil {
		return "", err
	}
	start, err := s.startOf("big", from)
	if err != nil {
		return "", err
	}
	needs := s.size.big + s.size.context
	fits := func(r reading) bool { return s.card.TotalMB-r.used >= needs && slices.Contains(r.alive, false) }
	back, ok := lastBecame(readings, start, fits)
	if !ok {
		return "", fmt.Errorf("the worker started %v after the submit, before a victim was gone and the driver showed %.0f MiB free", start.Sub(from).Round(time.Millisecond), needs)
	}
	if len(f.FoundFree) == 1 && f.FoundFree[0]/mib < s.size.big {
		return "", fmt.Errorf("the worker found %.0f MiB free and needs %.0f", f.FoundFree[0]/mib, s.size.big)
	}
	evicted := len(s.since(from, "scheduler.evicting"))
	overshoot := start.Sub(back)
	if evicted == 0 {
		return "", errors.New("no eviction was told")
	}
	seen := fmt.Sprintf("%d evicted; gone with its memory back %d ms after the submit, the worker started %d ms later", evicted, back.Sub(from).Milliseconds(), overshoot.Milliseconds())
	if overshoot > s.o.late {
		return "", errors.New(seen)
	}
	return seen, nil
}

// startOf finds when the worker of an instance was started.
func (s *session) startOf(instance string, from time.Time) (time.Time, error) {
	for _, e := range s.since(from, "worker.state") {
		if e.text("to") == "starting" && (e.text("instance") == instance || e.text("plugin") == instance) {
			return e.At, nil
		}
	}
	return time.Time{}, fmt.Errorf("no start of a worker of %s was told", instance)
}

// lastBecame finds the newest moment up to a time at which the readings became
// so and stayed so until then. ok is false when they were not so at that time.
func lastBecame(readings []reading, until time.Time, so func(reading) bool) (at time.Time, ok bool) {
	for _, r := range readings {
		if r.at.After(until) {
			break
		}
		switch is := so(r); {
		case is && !ok:
			at, ok = r.at, true
		case !is:
			ok = false
		}
	}
	return at, ok
}

func (s *session) checkMeasuring(ctx context.Context) (string, error) {
	first, err := s.submit(ctx, "unknown", 0, map[string]any{"seconds": hold})
	if err != nil {
		return "", err
	}
	if _, err := s.executing(ctx, first, time.Minute); err != nil {
		return "", err
	}
	beside, err := s.submit(ctx, "alloc", 0, nil)
	if err != nil {
		return "", err
	}
	if _, err := s.blocked(ctx, beside); err != nil {
		return "", err
	}
	if _, err := s.answer(ctx, first); err != nil {
		return "", err
	}
	if _, err := s.answer(ctx, beside); err != nil {
		return "", err
	}
	a, err := s.job(ctx, first)
	if err != nil {
		return "", err
	}
	b, err := s.job(ctx, beside)
	if err != nil {
		return "", err
	}
	if b.StartedAt.Before(a.FinishedAt) {
		return "", fmt.Errorf("the other job started %v before the measuring run ended", a.FinishedAt.Sub(b.StartedAt))
	}
	if _, err := s.occupy(ctx, "unknown", "alloc"); err != nil {
		return "", fmt.Errorf("the second run is not beside others: %w", err)
	}
	return fmt.Sprintf("the other job waited %d ms, the second runs are side by side", b.StartedAt.Sub(a.StartedAt).Milliseconds()), nil
}

func (s *session) checkLease(ctx context.Context) (string, error) {
	var lease struct {
		ID string `json:"id"`
	}
	size := s.size.budget - s.size.big/2
	err := s.call(ctx, http.MethodPost, "/v1/leases", map[string]any{"device": s.card.UUID, "mb": size, "for": "5m", "note": "GPU checks"}, &lease)
	if err != nil {
		return "", err
	}
	id, err := s.submit(ctx, "big", 0, nil)
	if err != nil {
		return "", err
	}
	b, err := s.blocked(ctx, id)
	if err != nil {
		return "", err
	}
	ended := time.Now()
	if err := s.call(ctx, http.MethodDelete, "/v1/leases/"+lease.ID, nil, nil); err != nil {
		return "", err
	}
	if _, err := s.answer(ctx, id); err != nil {
		return "", err
	}
	j, err := s.job(ctx, id)
	return fmt.Sprintf("%.0f MiB held back (%s); started %d ms after its end", size, b.Sentence, j.StartedAt.Sub(ended).Milliseconds()), err
}
