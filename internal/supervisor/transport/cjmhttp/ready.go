package cjmhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// Ready waits for the end of the greeting.
func (c *Conn) Ready(ctx context.Context) (supervisor.Ready, error) {
	select {
	case <-c.ready:
		return c.readyValue, c.readyErr
	case <-ctx.Done():
		return supervisor.Ready{}, context.Cause(ctx)
	case <-c.ended:
	}
	select {
	case <-c.ready: // both were true; what the worker said counts
		return c.readyValue, c.readyErr
	default:
		return supervisor.Ready{}, c.err
	}
}

// greet waits for the server, learns what it can do and initialises the plugin.
// It has no deadline of its own: whoever started the process has.
func (c *Conn) greet() {
	value, err := c.load()
	var lost *supervisor.ConnLostError
	var call *supervisor.CallError
	switch {
	case errors.As(err, &lost):
		return // who ended the connection has said why
	case err != nil && !errors.As(err, &call):
		c.fail(fmt.Errorf("cannot load: %w", err))
		return
	}
	c.readyValue, c.readyErr = value, err
	close(c.ready)
}

func (c *Conn) load() (supervisor.Ready, error) {
	// The kernel accepts before the worker does, so this one request waits as long
	// as the worker needs to come up, and is reset when it dies.
	health, err := c.ask(c.ctx, http.MethodGet, "/health", nil)
	if err != nil {
		return supervisor.Ready{}, err
	}
	// The name is the plugin's own idea and often another than the manifest's:
	// a worker is known by its process.
	var h struct {
		PID       int    `json:"pid"`
		Name      any    `json:"name"`
		Version   any    `json:"version"`
		Substrate string `json:"substrate_version"`
	}
	if err := json.Unmarshal(health, &h); err != nil {
		return supervisor.Ready{}, fmt.Errorf("the answer to /health: %w", err)
	}
	title, err := c.learn()
	if err != nil {
		return supervisor.Ready{}, err
	}
	c.events(supervisor.ConnEvent{Progress: &supervisor.Progress{Fraction: -1, Message: "the server is up; the plugin is being initialised"}})
	if err := c.initialize(c.ctx, c.hello.Config); err != nil {
		return supervisor.Ready{}, err
	}
	runtime := title + " over HTTP"
	if h.Substrate != "" {
		runtime += " (cjm_substrate " + h.Substrate + ")"
	}
	r := supervisor.Ready{
		Protocol: 1, Name: text(h.Name), Version: text(h.Version), PID: h.PID, Runtime: runtime, Capabilities: c.capabilities(),
	}
	// Plugins whose schema cannot be written as JSON, or that have no config to
	// show before their first call, still work.
	if r.Schema, err = c.optional("/config_schema"); err != nil {
		return supervisor.Ready{}, err
	}
	if r.Config, err = c.optional("/config"); err != nil {
		return supervisor.Ready{}, err
	}
	_, err = c.progress.read(c.ctx, c)
	return r, err
}

// learn asks what the worker serves and returns the title of its server.
func (c *Conn) learn() (string, error) {
	c.features = map[string]bool{}
	raw, err := c.ask(c.ctx, http.MethodGet, "/openapi.json", nil)
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusNotFound {
		return "Plugin Worker", nil // a server that does not describe itself serves what the first release did
	}
	if err != nil {
		return "", err
	}
	var doc struct {
		Info  struct{ Title string }
		Paths map[string]json.RawMessage
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", fmt.Errorf("the answer to /openapi.json: %w", err)
	}
	for path := range doc.Paths {
		c.features[path] = true
	}
	return doc.Info.Title, nil
}

// initialize gives the plugin its configuration, always: one whose schema has no
// defaults needs its initialize as much as another.
func (c *Conn) initialize(ctx context.Context, config json.RawMessage) error {
	c.deaf.Add(1) // in every release it runs on the event loop
	defer c.deaf.Add(-1)
	_, err := c.ask(ctx, http.MethodPost, "/initialize", config)
	return refusal(err, "initialize")
}

func (c *Conn) optional(path string) (json.RawMessage, error) {
	raw, err := c.ask(c.ctx, http.MethodGet, path, nil)
	var status *statusError
	if errors.As(err, &status) {
		return nil, nil
	}
	return raw, err
}

// capabilities translates what is served. That a hook is served does not mean
// that the plugin has it: those are told by their answers.
func (c *Conn) capabilities() []string {
	out := []string{"stream", "cancel", "progress"}
	for _, f := range []struct{ path, name string }{
		{"/reconfigure", "control"}, {"/reconfigure", "concurrent"}, {"/reconfigure", "reconfigure"}, {"/prefetch", "prefetch"},
		{"/on_enable", "enable"}, {"/on_disable", "disable"}, {"/task", "task"}, {"/structural_surface", "surface"},
	} {
		if c.has(f.path) {
			out = append(out, f.name)
		}
	}
	return out
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return ""
}
