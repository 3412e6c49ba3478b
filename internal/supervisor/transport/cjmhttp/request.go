package cjmhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// reads are the control requests that are one GET.
var reads = map[string]string{
	"schema": "/config_schema", "config": "/config", "options": "/config_options", "stats": "/stats", "surface": "/structural_surface",
}

// hooks are those that are one POST without a body; a plugin that lacks one says so.
var hooks = map[string]string{"prefetch": "/prefetch", "enable": "/on_enable", "disable": "/on_disable"}

// firstRelease is what every worker serves, whether it describes itself or not.
var firstRelease = map[string]bool{"/config_schema": true, "/config": true, "/stats": true}

// Request makes a control call.
func (c *Conn) Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	select {
	case <-c.ready:
	case <-c.ended:
		return nil, c.err
	default:
		if method == "ping" { // it loads; the life line says whether it lives
			return json.RawMessage("{}"), nil
		}
		return nil, fmt.Errorf("cannot ask for %q: the worker is still loading", method)
	}
	if c.deaf.Load() > 0 {
		if method == "ping" {
			return json.RawMessage("{}"), nil
		}
		// Asked now, it would be answered after the call, when nobody waits any more.
		return nil, &supervisor.CallError{Category: "transient", Retriable: true,
			Message: fmt.Sprintf("the worker answers nothing (%s) before it is done with what it does now", method)}
	}
	if path, ok := reads[method]; ok {
		return c.read(ctx, method, path)
	}
	if path, ok := hooks[method]; ok {
		return c.hook(ctx, method, path)
	}
	switch method {
	case "ping":
		_, err := c.ask(ctx, http.MethodGet, "/health", nil)
		return json.RawMessage("{}"), err
	case "configure":
		return c.configure(ctx, params)
	case "system_status":
		return c.systemStatus(ctx)
	case "processes":
		return c.processes(ctx)
	}
	return nil, unsupported(method)
}

func unsupported(method string) error {
	return fmt.Errorf("cannot ask for %q: %w", method, supervisor.ErrNotSupported)
}

func (c *Conn) read(ctx context.Context, method, path string) (json.RawMessage, error) {
	if !c.has(path) && !firstRelease[path] {
		return nil, unsupported(method)
	}
	raw, err := c.ask(ctx, http.MethodGet, path, nil)
	return raw, refusal(err, method)
}

// outcome is what hooks answer, always with 200: the status says how it went.
type outcome struct {
	Status string `json:"status"`
	Detail string `json:"detail"`
}

func (c *Conn) post(ctx context.Context, path string, body []byte) (outcome, error) {
	var o outcome
	raw, err := c.ask(ctx, http.MethodPost, path, body)
	if err != nil {
		return o, refusal(err, path[1:])
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return o, fmt.Errorf("cannot read the answer to %s: %w", path, err)
	}
	if o.Status == "error" {
		return o, &supervisor.CallError{Category: "fatal", Message: orSay(o.Detail, path[1:]+" failed without a message")}
	}
	return o, nil
}

func (c *Conn) hook(ctx context.Context, method, path string) (json.RawMessage, error) {
	if !c.has(path) {
		return nil, unsupported(method)
	}
	o, err := c.post(ctx, path, nil)
	if err != nil {
		return nil, err
	}
	if o.Status == "not_supported" {
		return nil, unsupported(method)
	}
	return json.RawMessage("{}"), nil
}

// configure tells the plugin its new configuration. Two answers to /reconfigure
// look like success and are none: "not_supported", and "reconfigured" by a base
// class whose reconfigure does nothing. Both are followed by /initialize.
func (c *Conn) configure(ctx context.Context, params json.RawMessage) (json.RawMessage, error) {
	var p struct{ Old, New json.RawMessage }
	if err := json.Unmarshal(params, &p); err != nil {
		return nil, fmt.Errorf("cannot configure: %w", err)
	}
	applied := supervisor.AppliedInitialized
	if c.has("/reconfigure") {
		ok, err := c.reconfigure(ctx, p.Old, p.New)
		if err != nil {
			return nil, err
		}
		if ok {
			applied = supervisor.AppliedReconfigured
		}
	}
	if applied == supervisor.AppliedInitialized {
		if err := c.initialize(ctx, p.New); err != nil {
			return nil, err
		}
	}
	return json.Marshal(map[string]supervisor.Applied{"applied": applied})
}

func (c *Conn) reconfigure(ctx context.Context, old, updated json.RawMessage) (bool, error) {
	body, err := json.Marshal(map[string]json.RawMessage{"old_config": orNull(old), "new_config": orNull(updated)})
	if err != nil {
		return false, fmt.Errorf("cannot configure: %w", err)
	}
	c.deaf.Add(1)
	o, err := c.post(ctx, "/reconfigure", body)
	c.deaf.Add(-1)
	if err != nil || o.Status == "not_supported" {
		return false, err
	}
	now, err := c.ask(ctx, http.MethodGet, "/config", nil)
	var status *statusError
	if err != nil && !errors.As(err, &status) {
		return false, err
	}
	return !unchanged(old, updated, now), nil
}

// unchanged reports whether a plugin that shows its configuration still shows
// the old value of everything that was to change.
func unchanged(old, updated, now []byte) bool {
	var o, u, n map[string]json.RawMessage
	if json.Unmarshal(old, &o) != nil || json.Unmarshal(updated, &u) != nil || json.Unmarshal(now, &n) != nil {
		return false
	}
	shown := false
	for key, want := range u {
		have, known := n[key]
		if !known || equalJSON(o[key], want) {
			continue
		}
		if !equalJSON(have, o[key]) {
			return false
		}
		shown = true
	}
	return shown
}

func equalJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return bytes.Equal(a, b)
	}
	ax, _ := json.Marshal(x) // came out of a decoder: cannot fail
	by, _ := json.Marshal(y)
	return bytes.Equal(ax, by)
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

// systemStatus asks a monitor: by its own path, and where the worker or the
// plugin is older than that, by the command that monitors took before.
func (c *Conn) systemStatus(ctx context.Context) (json.RawMessage, error) {
	const path = "/get_system_status"
	if c.has(path) {
		raw, err := c.monitor(ctx, path)
		var status *statusError
		if !errors.As(err, &status) || status.code != http.StatusNotImplemented {
			return raw, err
		}
	}
	raw, err := c.ask(ctx, http.MethodPost, "/execute", []byte(`{"args":["get_system_status"],"kwargs":{}}`))
	return raw, refusal(err, "system_status")
}

func (c *Conn) processes(ctx context.Context) (json.RawMessage, error) {
	const path = "/list_processes"
	if !c.has(path) {
		return nil, unsupported("processes")
	}
	raw, err := c.monitor(ctx, path)
	var status *statusError
	if errors.As(err, &status) {
		return nil, unsupported("processes")
	}
	return raw, err
}

// monitor asks one of the monitors' paths. A plugin that is no monitor does not
// support it; *statusError: it is one from before there was this path.
func (c *Conn) monitor(ctx context.Context, path string) (json.RawMessage, error) {
	raw, err := c.ask(ctx, http.MethodPost, path, nil)
	var status *statusError
	switch {
	case !errors.As(err, &status):
		return raw, err
	case status.code == http.StatusNotFound:
		return nil, unsupported(path[1:])
	case status.code == http.StatusNotImplemented:
		return nil, err
	}
	return nil, refusal(err, path[1:])
}

// Cancel runs the plugin's cancel(). That it ran is all that the answer says:
// the call ends when it ends.
func (c *Conn) Cancel(ctx context.Context, job string, mode supervisor.CancelMode) error {
	if mode != supervisor.CancelCooperative {
		return fmt.Errorf("cannot interrupt a call of an HTTP worker: %w", supervisor.ErrNotSupported)
	}
	c.mu.Lock()
	r := c.running[job]
	c.mu.Unlock()
	if r == nil {
		return nil // it has ended meanwhile
	}
	r.asked.Store(true)
	if c.deaf.Load() > 0 {
		// The request would be served after the call, and hit the next one.
		return fmt.Errorf("cannot tell call %q: its worker hears nothing before the call ends: %w", job, supervisor.ErrNotSupported)
	}
	o, err := c.post(ctx, "/cancel", nil)
	if err == nil && o.Status == "not_supported" {
		err = fmt.Errorf("cannot cancel call %q: %w", job, supervisor.ErrNotSupported)
	}
	return err
}
