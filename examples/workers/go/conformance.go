package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// conformance is the plugin that `cjmd worker-check` calls (docs/worker-protocol.md,
// "The conformance plugin"). A worker of your own keeps this file as it is.
func conformance(ctx context.Context, c *call) (any, error) {
	var in struct {
		Kwargs struct {
			Op, Category, Message string
			Retriable, Deaf       bool
			To, Bytes             int
		}
	}
	if err := json.Unmarshal(c.payload, &in); err != nil {
		return nil, &pluginError{Category: "user_input", Message: err.Error()}
	}
	switch k := in.Kwargs; k.Op {
	case "echo":
		return json.RawMessage(c.payload), nil
	case "count":
		for i := 1; i <= k.To; i++ {
			if err := c.chunk(i); err != nil {
				return nil, err
			}
		}
		return k.To, nil
	case "fail":
		return nil, &pluginError{Category: k.Category, Type: "ToldToFail", Message: k.Message, Retriable: k.Retriable}
	case "wait":
		c.progress(-1, "waiting")
		if k.Deaf {
			ctx = c.hard
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case "big":
		return strings.Repeat("x", k.Bytes), nil
	case "noise":
		n, err := fmt.Fprint(os.Stdout, strings.Repeat("x", k.Bytes))
		return n, err
	case "spawn":
		cmd := exec.Command("sleep", "300")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		go func() { _ = cmd.Wait() }()
		return cmd.Process.Pid, nil
	default:
		return nil, &pluginError{Category: "user_input", Message: fmt.Sprintf("there is no op %q", k.Op)}
	}
}
