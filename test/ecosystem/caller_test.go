//go:build ecosystem

package ecosystem

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/test/daemontest"
)

// caller calls one plugin through the API.
type caller struct {
	t      testing.TB
	s      *daemontest.Session
	plugin string
}

// call is one job: arguments for execute, or a task's method and its arguments.
type call struct {
	args   []any
	kwargs map[string]any
	task   string
	method string
}

func (k call) request(plugin string, stream bool) string {
	body := map[string]any{"plugin": plugin}
	for name, value := range map[string]any{"args": k.args, "kwargs": k.kwargs, "task": k.task, "method": k.method, "stream": stream} {
		if !reflect.ValueOf(value).IsZero() {
			body[name] = value
		}
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("cannot encode a request: %v", err)) // only what this package wrote
	}
	return string(b)
}

func (c caller) submit(k call, stream bool) wire.Job {
	c.t.Helper()
	return daemontest.Must[wire.Job](c.t)(c.s.Raw(http.MethodPost, "/v1/jobs", k.request(c.plugin, stream)))
}

// result is what the call answers; typed results of the ecosystem are unwrapped.
func (c caller) result(k call) any {
	c.t.Helper()
	job := c.s.Wait(c.submit(k, false).Id)
	c.s.IsCompleted(job)
	var v any
	c.s.Result(job.Id, &v)
	return unwrapped(v)
}

// object is the result where it must be an object.
func (c caller) object(k call) map[string]any {
	c.t.Helper()
	v := c.result(k)
	o, ok := v.(map[string]any)
	if !ok {
		c.t.Fatalf("the result is %v, want an object", v)
	}
	return o
}

// fails runs a call that must fail with this category.
func (c caller) fails(k call, category wire.JobErrorCategory) {
	c.t.Helper()
	c.s.IsFailed(c.s.Wait(c.submit(k, false).Id), category)
}

// chunks are what the call streams.
func (c caller) chunks(k call) []any {
	c.t.Helper()
	job := c.submit(k, true)
	c.s.IsCompleted(c.s.Wait(job.Id))
	var found []any
	for _, ev := range c.s.Stream(daemontest.JobPath(job.Id, "events")).Rest() {
		if ev.Kind != "chunk" {
			continue
		}
		var value any
		if err := json.Unmarshal(ev.Data, &value); err != nil {
			c.t.Fatalf("the chunk is %.200s: %v", ev.Data, err)
		}
		found = append(found, unwrapped(value))
	}
	return found
}

// cancelled runs a call that does not end by itself and cancels it at work.
func (c caller) cancelled(k call) {
	c.t.Helper()
	job := c.submit(k, false)
	c.s.Stream(daemontest.JobPath(job.Id, "events")).Await(func(ev client.Event) bool {
		return daemontest.Data(c.t, ev)["phase"] == "executing"
	})
	c.s.Cancel(job.Id)
	if got := c.s.Wait(job.Id); got.Status != wire.JobStatusCancelled {
		c.t.Fatalf("the cancelled job is %s, error %+v", got.Status, got.Error)
	}
}

// configure is a hot update of the plugin's configuration.
func (c caller) configure(config map[string]any) {
	c.t.Helper()
	body, err := json.Marshal(map[string]any{"config": config})
	if err != nil {
		c.t.Fatal(err)
	}
	daemontest.Must[json.RawMessage](c.t)(c.s.Raw(http.MethodPut, "/v1/plugins/"+c.plugin+"/config", string(body)))
}

// unwrapped takes typed results out of their envelope {"__wire__": kind, "data": …}.
func unwrapped(v any) any {
	if o, ok := v.(map[string]any); ok && len(o) == 2 && o["__wire__"] != nil {
		return o["data"]
	}
	return v
}

// has fails the test unless the object has these members with these values.
func has(t testing.TB, object any, want map[string]any) {
	t.Helper()
	o, ok := object.(map[string]any)
	if !ok {
		t.Fatalf("found %v, want an object with %v", object, want)
	}
	for key, value := range want {
		if !reflect.DeepEqual(o[key], value) {
			t.Errorf("%s is %v, want %v; all: %v", key, o[key], value, o)
		}
	}
}

func equal(t testing.TB, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
