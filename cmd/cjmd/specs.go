package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cjmd/cjmd/internal/config"
	"github.com/cjmd/cjmd/internal/execworker"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/cjmhttp"
)

// specs turns an instance into what the supervisor runs. It is asked at each
// start of a worker, so a changed manifest or config is used by the next one.
type specs struct {
	cfg     *config.Config
	plugins *plugins.Catalog
	secrets *plugins.Secrets
	runtime string // directory that goes onto PYTHONPATH
	environ []string
	machine func() resource.Snapshot // what the monitor saw last
}

// Spec implements supervisor.Catalog.
func (s *specs) Spec(_ context.Context, instance string, devices []string) (supervisor.Spec, error) {
	inst, man, err := s.plugins.Instance(instance)
	if err != nil {
		return supervisor.Spec{}, err
	}
	if err := plugins.Runnable(man); err != nil {
		return supervisor.Spec{}, err
	}
	secrets, err := s.secrets.Values(man.Name, man.Secrets)
	if err != nil {
		return supervisor.Spec{}, err
	}
	dirs := s.dirs(inst)
	for _, dir := range []string{dirs.Data, dirs.Models, dirs.Cache} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return supervisor.Spec{}, fmt.Errorf("cannot make a directory for %q: %w", instance, err)
		}
	}
	env, err := plugins.BuildEnv(s.environ, man, inst, dirs)
	if err != nil {
		return supervisor.Spec{}, err
	}
	if env, err = placeWorker(env, devices, man.Demand.RequiresGPU, man.Env, s.deviceIndex); err != nil {
		return supervisor.Spec{}, err
	}
	concurrency := max(1, man.Concurrency)
	if inst.Concurrency > 0 {
		concurrency = inst.Concurrency
	}
	command, err := s.command(man)
	if err != nil {
		return supervisor.Spec{}, err
	}
	wish := isolationWish(s.cfg, man, inst)
	s.plugins.MarkStarted(instance, man.Hash)
	return supervisor.Spec{
		Instance:  instance,
		Plugin:    man.Name,
		Transport: transportOf(man),
		Command:   command,
		Dir:       dirs.Data,
		Env:       s.pythonPath(env, man),
		Hello: supervisor.Hello{
			Instance: instance, Plugin: man.Name, Module: man.Module, Class: man.Class, Adapters: man.Adapters,
			Config:     inst.Config,
			Dirs:       map[string]string{"data": dirs.Data, "models": dirs.Models, "cache": dirs.Cache},
			Secrets:    secrets,
			Concurrent: concurrency,
		},
		Concurrency:  concurrency,
		StartCap:     orElse(man.Timeouts.Start, s.cfg.Workers.StartCap),
		StallTimeout: orElse(man.Timeouts.Stall, s.cfg.Workers.StallTimeout),
		StopGrace:    orElse(man.Timeouts.StopGrace, s.cfg.Workers.StopGrace),
		Isolation:    supervisor.IsolationWish{Tier: wish.Tier, Require: wish.Require},
		View:         s.view(man, wish, command, dirs, devices),
		Limits:       resourceLimits(man, inst),
	}, nil
}

func (s *specs) deviceIndex(id string) (int, bool) {
	for _, d := range s.machine().Devices {
		if d.ID == resource.DeviceID(id) {
			return d.Index, true
		}
	}
	return 0, false
}

func (s *specs) dirs(inst plugins.Instance) plugins.EnvDirs {
	return plugins.EnvDirs{
		Data:   filepath.Join(s.cfg.DataDir(), inst.ID),
		Models: s.cfg.ModelsDir(),
		Cache:  filepath.Join(s.cfg.CacheDir, "workers", inst.ID),
	}
}

// Values of runtime in a manifest that are not the default.
const (
	runtimeHTTP = "http"
	runtimeExec = "exec"
)

// transportOf is the protocol that a plugin's worker speaks.
func transportOf(man plugins.Manifest) string {
	if man.Runtime == runtimeHTTP {
		return "http"
	}
	return "native"
}

// command is the program of a worker: our own for a program that is run per job,
// the manifest's command, the HTTP worker of the environment's base library, or
// the embedded runtime under the environment's interpreter.
func (s *specs) command(man plugins.Manifest) ([]string, error) {
	switch {
	case man.Runtime == runtimeExec:
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("cannot find the daemon's own program: %w", err)
		}
		spec := *man.Exec
		spec.Command = man.Command // looked up on this machine
		return execworker.Command(self, spec)
	case len(man.Command) > 0:
		return man.Command, nil
	case man.Runtime == runtimeHTTP:
		return cjmhttp.Command(man.PythonPath, man.Module, man.Class), nil
	}
	return []string{man.PythonPath, "-m", "cjmworker"}, nil
}

// pythonPath puts the plugin's code, and before it the embedded runtime where
// that is what runs, first.
func (s *specs) pythonPath(env []string, man plugins.Manifest) []string {
	dirs := man.CodeDirs
	if man.Runtime != runtimeHTTP && man.Runtime != runtimeExec {
		dirs = append([]string{s.runtime}, dirs...)
	}
	if len(dirs) == 0 {
		return env
	}
	return prependPath(env, "PYTHONPATH", dirs)
}

func isolationWish(cfg *config.Config, man plugins.Manifest, inst plugins.Instance) plugins.Isolation {
	wish := man.Isolation
	if inst.Isolation != nil {
		wish = *inst.Isolation
	}
	if wish.Tier == "" {
		wish.Tier = cfg.Workers.Isolation.Tier
	}
	return wish
}

func resourceLimits(man plugins.Manifest, inst plugins.Instance) supervisor.ResourceLimits {
	l := man.Limits
	if inst.Limits != nil {
		l = *inst.Limits
	}
	return supervisor.ResourceLimits{
		MemoryMax: int64(resource.FromMB(float64(l.MemoryMaxMB))),
		PidsMax:   l.PidsMax,
		CPUWeight: l.CPUWeight, CPUMax: l.CPUMax, IOWeight: l.IOWeight,
		NoFile: l.NoFile, Nice: l.Nice,
	}
}

// prependPath puts dirs before what env already has under name.
func prependPath(env []string, name string, dirs []string) []string {
	joined := strings.Join(dirs, string(os.PathListSeparator))
	for i, kv := range env {
		if have, ok := strings.CutPrefix(kv, name+"="); ok {
			env[i] = name + "=" + joined + string(os.PathListSeparator) + have
			return env
		}
	}
	return append(env, name+"="+joined)
}

func orElse[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}
