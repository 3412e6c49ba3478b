package main

import (
	"context"
	"errors"
	"slices"

	"github.com/cjmd/cjmd/internal/api"
	"github.com/cjmd/cjmd/internal/monitors"
)

// machine is the Gate as the API declares it: api imports no monitor.
type machine struct{ *monitors.Gate }

// Monitors lists what can be registered; all but the registered one are idle.
func (m machine) Monitors() []api.MonitorInfo {
	var out []api.MonitorInfo
	states := m.State()
	for _, name := range m.Known() {
		info := api.MonitorInfo{Name: name, State: "idle"}
		if i := slices.IndexFunc(states, func(s monitors.MonitorState) bool { return s.Name == name }); i >= 0 {
			s := states[i]
			info.Registered, info.State, info.At, info.Err = true, s.State, s.LastSample, s.Error
		}
		out = append(out, info)
	}
	return out
}

// Register makes name the system monitor.
func (m machine) Register(ctx context.Context, name string) error {
	err := m.RegisterName(ctx, name)
	var unknown *monitors.UnknownError
	if errors.As(err, &unknown) {
		return &api.UnknownError{What: "monitor", Name: unknown.Name, Known: unknown.Known}
	}
	return err
}
