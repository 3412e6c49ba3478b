package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// suiteCall is a call of the conformance suite of the transports.
type suiteCall struct {
	id, job string
	stream  bool
	cancels <-chan string
	args    []any
	kwargs  map[string]any
	op      string
}

// read reports whether it is one: it has the keyword argument op, or nothing at all.
func (c *suiteCall) read(args []any, kwargs json.RawMessage) bool {
	_ = json.Unmarshal(kwargs, &c.kwargs)
	op, has := c.kwargs["op"].(string)
	if !has && len(args) > 0 {
		return false
	}
	delete(c.kwargs, "op")
	c.args, c.op = args, op
	return true
}

func (c *suiteCall) number(name string) int {
	n, _ := c.kwargs[name].(float64)
	return int(n)
}

// suite does what transporttest's suite_plugin.py does.
func (w *worker) suite(c suiteCall) {
	chunks := 0
	emit := func(value any) {
		b, _ := json.Marshal(value) // plain values
		chunks++
		w.notify("chunk", map[string]any{"job": c.job, "n": chunks}, b)
	}
	if c.stream {
		for n := 1; n <= c.number("to"); n++ {
			emit(n)
		}
	}
	var result any
	switch c.op {
	case "die":
		os.Exit(3)
	case "fail":
		w.send(map[string]any{"id": c.id, "error": map[string]any{"code": -32000, "message": c.kwargs["message"], "data": map[string]any{
			"category": c.kwargs["category"], "type": "SuiteError", "retriable": c.kwargs["retriable"],
		}}}, nil)
		return
	case "wait":
		w.suiteWait(c)
		return
	case "sleep":
		seconds, _ := c.kwargs["seconds"].(float64)
		time.Sleep(time.Duration(seconds * float64(time.Second)))
		result = "slept"
	case "big":
		if c.number("bytes") > maxResult {
			w.fail(c.id, -32000, "resource", fmt.Sprintf("a result of %d bytes is too long", c.number("bytes")))
			return
		}
		result = strings.Repeat("x", c.number("bytes"))
		if c.stream {
			emit(result)
		}
	case "init_count":
		w.mu.Lock()
		result = map[string]any{"config": w.config}
		w.mu.Unlock()
	default:
		result = map[string]any{"args": append([]any{}, c.args...), "kwargs": c.kwargs}
	}
	if c.stream {
		result = map[string]any{"chunks": chunks}
	}
	b, _ := json.Marshal(result) // plain values
	w.answer(c.id, map[string]any{"chunks": chunks}, b)
}

// maxResult is the limit that the suite sets.
const maxResult = 16<<20 - 2

func (w *worker) suiteWait(c suiteCall) {
	w.notify("progress", map[string]any{"job": c.job, "fraction": 0.25, "message": "waiting"}, nil)
	deaf, _ := c.kwargs["deaf"].(bool)
	for mode := range c.cancels {
		if !deaf || mode == "interrupt" {
			w.fail(c.id, -32002, "cancelled", "stopped")
			return
		}
	}
}

func (w *worker) configure(config []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config = append(json.RawMessage(nil), config...)
}
