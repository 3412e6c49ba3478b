package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/cjmd/cjmd/internal/events"
)

const controlsKey = "queue.controls"

// SetControl pauses, drains or resumes the whole queue (scope "") or the part
// of one instance. It is durable when it returns and survives a restart.
func (q *Queue) SetControl(ctx context.Context, scope string, mode Mode) error {
	switch mode {
	case ModeRunning, ModePaused, ModeDraining:
	default:
		return &InvalidError{Field: "mode", Message: "must be running, paused or draining"}
	}
	if err := acquire(ctx, q.controlCh); err != nil {
		return err
	}
	defer func() { <-q.controlCh }()
	next := q.Controls()
	if next[scope] == mode || mode == ModeRunning && next[scope] == "" {
		return nil
	}
	next[scope] = mode
	if mode == ModeRunning {
		delete(next, scope)
	}
	value, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("cannot encode the queue's controls: %w", err)
	}
	if err := q.store.PutSetting(ctx, controlsKey, string(value), events.Draft{Kind: events.QueueControl, Instance: scope,
		Data: eventData{"scope": scope, "mode": mode}}); err != nil {
		return fmt.Errorf("cannot set the queue to %s: %w", mode, err)
	}
	q.mu.Lock()
	q.controls = next
	q.mu.Unlock()
	q.wake()
	return nil
}

// Controls returns what is not running: scope "" is the whole queue.
func (q *Queue) Controls() map[string]Mode {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.controls)
}

func (q *Queue) pausedLocked(instance string) bool {
	return q.controls[""] == ModePaused || q.controls[instance] == ModePaused
}

func (q *Queue) loadControls(ctx context.Context) error {
	value, err := q.store.Setting(ctx, controlsKey)
	if err != nil || value == "" {
		return err
	}
	controls := map[string]Mode{}
	if err := json.Unmarshal([]byte(value), &controls); err != nil {
		return fmt.Errorf("cannot decode the queue's controls: %w", err)
	}
	q.mu.Lock()
	q.controls = controls
	q.mu.Unlock()
	return nil
}
