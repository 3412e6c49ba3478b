package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

func (s *session) checkLoadOOM(ctx context.Context) (string, error) {
	if _, err := s.work(ctx, "share", nil); err != nil { // somebody who holds something
		return "", err
	}
	id, err := s.submit(ctx, "loadoom", 0, nil)
	if err != nil {
		return "", err
	}
	j, err := s.end(ctx, id, 3*time.Minute)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(s.file("loadoom.loads"))
	if err != nil {
		return "", fmt.Errorf("cannot count the loads: %w", err)
	}
	loads := strings.Count(string(text), "\n")
	if j.Status != "failed" || j.Error == nil || j.Error.Category != "oom" && j.Error.Category != "resource" || loads != 2 {
		return "", fmt.Errorf("%d loads, the job is %s: %s", loads, j.Status, j.failure())
	}
	if !strings.Contains(j.Error.Message, s.card.UUID) && !strings.Contains(j.Error.Message, "MiB") && len(j.Error.Shortfall) == 0 {
		return "", fmt.Errorf("the failure does not say who held what: %s", j.failure())
	}
	return fmt.Sprintf("%d loads, then: %s", loads, j.failure()), nil
}

func (s *session) checkRunOOM(ctx context.Context) (string, error) {
	other, err := s.work(ctx, "share", nil)
	if err != nil {
		return "", err
	}
	id, err := s.submit(ctx, "runoom", 0, map[string]any{"too_much_once": s.file("runoom.runs")})
	if err != nil {
		return "", err
	}
	if _, err := s.answer(ctx, id); err != nil {
		return "", err
	}
	j, err := s.job(ctx, id)
	if err != nil {
		return "", err
	}
	again, err := s.work(ctx, "share", nil)
	if err != nil {
		return "", err
	}
	if again.PID != other.PID {
		return "", errors.New("the other worker did not survive it")
	}
	text, err := os.ReadFile(s.file("runoom.runs"))
	if err != nil {
		return "", fmt.Errorf("cannot count the runs: %w", err)
	}
	if runs := strings.Count(string(text), "\n"); runs != 2 {
		return "", fmt.Errorf("it ran %d times", runs)
	}
	return fmt.Sprintf("completed at its second run (attempt %d); the other worker is still process %d", j.Attempt, other.PID), nil
}

func (s *session) checkKillWorker(ctx context.Context) (string, error) {
	if _, err := s.work(ctx, "alloc", nil); err != nil {
		return "", err
	}
	pid, err := s.pid(ctx, "alloc")
	if err != nil {
		return "", err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("cannot kill the worker: %w", err)
	}
	killed := time.Now()
	if err := s.memoryBack(ctx, 20*time.Second); err != nil {
		return "", err
	}
	back := time.Since(killed)
	if _, err := s.work(ctx, "alloc", nil); err != nil {
		return "", err
	}
	again, err := s.pid(ctx, "alloc")
	if err == nil && again == pid {
		err = errors.New("the killed process answered")
	}
	return fmt.Sprintf("memory back after %d ms; the next job ran in process %d", back.Milliseconds(), again), err
}

func (s *session) checkKillDaemon(ctx context.Context) (string, error) {
	ids, err := s.occupy(ctx, "alloc", "share")
	if err != nil {
		return "", err
	}
	before, err := left(s.dir)
	if err != nil {
		return "", err
	}
	s.d.kill()
	killed := time.Now()
	s.stopEvents()
	err = until(ctx, 20*time.Second, "every process of the daemon to be gone", func() (bool, error) {
		pids, err := left(s.dir)
		return len(pids) == 0, err
	})
	if err != nil {
		return "", err
	}
	gone := time.Since(killed)
	if err := s.memoryBack(ctx, 20*time.Second); err != nil {
		return "", err
	}
	back := time.Since(killed)
	if err := s.start(ctx); err != nil {
		return "", err
	}
	for _, id := range ids {
		if _, err := s.answer(ctx, id); err != nil {
			return "", err
		}
		if j, err := s.job(ctx, id); err != nil || j.Attempt != 2 {
			return "", errors.Join(err, fmt.Errorf("job %s completed at attempt %d, not 2", id, j.Attempt))
		}
	}
	return fmt.Sprintf("%d processes gone after %d ms, memory back after %d ms; both jobs completed at their second attempt",
		len(before), gone.Milliseconds(), back.Milliseconds()), nil
}
