package sched

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/supervisor"
	"go.uber.org/zap"
)

// DisabledError answers a load of an instance that is disabled.
type DisabledError struct{ Instance string }

func (e *DisabledError) Error() string {
	return fmt.Sprintf("cannot load %q: it is disabled", e.Instance)
}

// Load brings the instance's worker up, through the ledger like any job, and
// returns when it is ready. It clears an earlier failure. A load that is under
// way goes on when ctx ends. Errors: *plugins.NotFoundError, *DisabledError,
// *RefusedError, *supervisor.StartError, ErrStopping.
func (s *Scheduler) Load(ctx context.Context, instance string) error {
	in, _, err := s.o.Catalog.Instance(instance)
	if err != nil {
		return err
	}
	if !in.Enabled {
		return &DisabledError{Instance: instance}
	}
	s.o.Workers.Reset(instance)
	req := &loadRequest{reply: make(chan error, 1)}
	s.mail.call(func(l *loop) {
		if l == nil || !l.admitting {
			req.reply <- ErrStopping
			return
		}
		in := l.inst(instance)
		in.startSucceeded()
		in.loads = append(in.loads, req)
	})
	select {
	case err := <-req.reply:
		return err
	case <-ctx.Done():
		s.mail.call(func(l *loop) {
			if l != nil {
				l.inst(instance).forgetLoad(req)
			}
		})
		return ctx.Err()
	}
}

// Unload stops the instance's worker once the calls in flight have ended;
// nothing new is started on it meanwhile. When ctx ends before that, the
// worker stays. No error when there is no worker.
func (s *Scheduler) Unload(ctx context.Context, instance, cause string) error {
	return s.unload(ctx, instance, cause, false)
}

// ForceUnload stops the instance's worker at once. Jobs that run on it lose
// their worker and are tried again while they have attempts left.
func (s *Scheduler) ForceUnload(ctx context.Context, instance, cause string) error {
	return s.unload(ctx, instance, cause, true)
}

func (s *Scheduler) unload(ctx context.Context, instance, cause string, force bool) error {
	if _, _, err := s.o.Catalog.Instance(instance); err != nil {
		if _, ok := s.o.Workers.Status(instance); !ok {
			return err
		}
	}
	reply := make(chan error, 1)
	s.mail.call(func(l *loop) {
		if l == nil || !l.admitting {
			reply <- ErrStopping
			return
		}
		l.requestStop(l.inst(instance), cause, force, reply)
	})
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		s.mail.call(func(l *loop) {
			if l != nil {
				l.inst(instance).forgetStop(reply)
			}
		})
		return ctx.Err()
	}
}

// Reload stops the worker as Unload does and loads it again.
func (s *Scheduler) Reload(ctx context.Context, instance string) error {
	if err := s.Unload(ctx, instance, "reload"); err != nil {
		return err
	}
	return s.Load(ctx, instance)
}

// LoadAll loads every enabled instance; the answer has one entry each.
func (s *Scheduler) LoadAll(ctx context.Context) map[string]error {
	var names []string
	for _, in := range s.o.Catalog.Instances() {
		if in.Enabled {
			names = append(names, in.ID)
		}
	}
	return each(names, func(name string) error { return s.Load(ctx, name) })
}

// UnloadAll unloads every worker there is; the answer has one entry each.
func (s *Scheduler) UnloadAll(ctx context.Context, cause string) map[string]error {
	var names []string
	for _, st := range s.o.Workers.List() {
		if st.State != supervisor.Stopped {
			names = append(names, st.Instance)
		}
	}
	return each(names, func(name string) error { return s.Unload(ctx, name, cause) })
}

// each calls f for all names at once and waits for all.
func each(names []string, f func(string) error) map[string]error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := make(map[string]error, len(names))
	for _, name := range names {
		wg.Go(func() {
			err := f(name)
			mu.Lock()
			defer mu.Unlock()
			out[name] = err
		})
	}
	wg.Wait()
	return out
}

// Configure changes an instance's configuration while its worker stays loaded.
// The worker takes it first: one that refuses leaves the old configuration in
// force, in the worker and in the catalogue.
func (s *Scheduler) Configure(ctx context.Context, instance string, config json.RawMessage) (plugins.Instance, []plugins.Issue, supervisor.Applied, error) {
	if _, _, err := s.o.Catalog.Instance(instance); err != nil {
		return plugins.Instance{}, nil, "", err
	}
	unlock, err := s.lockConfig(ctx, instance)
	if err != nil {
		return plugins.Instance{}, nil, "", err
	}
	defer unlock()
	old, m, err := s.o.Catalog.Instance(instance)
	if err != nil {
		return plugins.Instance{}, nil, "", err
	}
	issues, err := s.o.Catalog.CheckConfig(instance, config)
	if err != nil {
		return old, issues, "", err
	}
	merged, err := plugins.MergeDefaults(m, config)
	if err != nil {
		return old, issues, "", err
	}
	before, _ := s.o.Workers.Status(instance)
	applied, err := s.o.Workers.Configure(ctx, instance, old.Config, merged)
	if err != nil {
		return old, issues, "", fmt.Errorf("cannot configure %q: %w", instance, err)
	}
	updated, issues, err := s.o.Catalog.SetConfig(ctx, instance, config)
	if err != nil {
		if _, back := s.o.Workers.Configure(context.WithoutCancel(ctx), instance, merged, old.Config); back != nil {
			err = errors.Join(err, fmt.Errorf("and cannot give the worker its old configuration back: %w", back))
		}
		return old, issues, "", err
	}
	// A start that began meanwhile may have taken the old configuration along.
	if now, _ := s.o.Workers.Status(instance); applied == supervisor.AppliedAtStart && now.Generation != before.Generation {
		if applied, err = s.o.Workers.Configure(ctx, instance, old.Config, merged); err != nil {
			_, _, back := s.o.Catalog.SetConfig(context.WithoutCancel(ctx), instance, old.Config)
			return old, issues, "", errors.Join(fmt.Errorf("cannot configure %q: %w", instance, err), back)
		}
	}
	s.o.Workers.Reset(instance)
	s.mail.call(func(l *loop) {
		if l != nil {
			l.inst(instance).startSucceeded()
		}
	})
	return updated, issues, applied, nil
}

// lockConfig admits one Configure of an instance at a time.
func (s *Scheduler) lockConfig(ctx context.Context, instance string) (unlock func(), err error) {
	v, _ := s.configuring.LoadOrStore(instance, make(chan struct{}, 1))
	slot := v.(chan struct{})
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Enable lets jobs of the instance start again.
func (s *Scheduler) Enable(ctx context.Context, instance string) error {
	return s.setEnabled(ctx, instance, true, "enable")
}

// Disable holds new jobs of the instance; running ones finish, and its worker
// stays loaded.
func (s *Scheduler) Disable(ctx context.Context, instance string) error {
	return s.setEnabled(ctx, instance, false, "disable")
}

// hookPatience is how long the caller of Enable or Disable waits for the
// plugin's hook. A worker that is busy runs it after its call.
const hookPatience = 2 * time.Second

// setEnabled stores the flag and tells a loaded worker by its hook of that name.
func (s *Scheduler) setEnabled(ctx context.Context, instance string, enabled bool, hook string) error {
	if _, err := s.o.Catalog.SetEnabled(ctx, instance, enabled); err != nil {
		return err
	}
	s.mail.call(func(l *loop) {
		if l != nil {
			l.describe(l.inst(instance))
		}
	})
	if st, ok := s.o.Workers.Status(instance); !ok || st.Ready == nil || !slices.Contains(st.Ready.Capabilities, hook) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hookPatience)
	defer cancel()
	_, err := s.o.Workers.Request(ctx, instance, hook, nil)
	switch {
	case err == nil, errors.Is(err, supervisor.ErrNotLoaded), errors.Is(err, supervisor.ErrNotSupported):
	case ctx.Err() != nil:
		s.log.Info("a plugin's hook waits for the end of a call", zap.String("instance", instance), zap.String("hook", hook))
	default:
		s.log.Warn("a plugin's hook failed", zap.String("instance", instance), zap.String("hook", hook), zap.Error(err))
	}
	return nil
}
