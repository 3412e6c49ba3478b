package supervisor

import (
	"fmt"
	"slices"
	"strings"
)

// stateInfo is one row of the table of states.
type stateInfo struct {
	state    State
	sentence string
	to       []State // what may follow; everything else is refused
}

// stateTable is the whole truth about a worker's life. The loop (worker.go) moves
// only along it and the diagram in docs/ARCHITECTURE.md is drawn from it.
var stateTable = []stateInfo{
	{Stopped, "No process of the worker exists.", []State{Starting}},
	{Starting, "The sandbox is being made and the process started.", []State{Initializing, Backoff, FailedState, Stopped}},
	{Initializing, "The process runs and loads its plugin; no call is taken.", []State{ReadyState, Stopping, Killing}},
	{ReadyState, "Loaded, no call in flight.", []State{Busy, Unresponsive, Stopping, Killing}},
	{Busy, "Loaded, at least one call in flight.", []State{ReadyState, Unresponsive, Draining, Killing}},
	{Unresponsive, "Loaded, but the control thread does not answer; no new calls.", []State{ReadyState, Busy, Draining, Stopping, Killing}},
	{Draining, "Asked to stop: no new calls, those in flight may finish.", []State{Stopping, Killing}},
	{Stopping, "Told to end by itself, politely.", []State{Killing}},
	{Killing, "The whole tree is being killed, also after a clean exit.", []State{Stopped, Backoff, FailedState, Unkillable}},
	{Backoff, "Failed lately; may be started again at retry_at.", []State{Stopped}},
	{FailedState, "Failed too often; waits for load, reload or a config change.", []State{Stopped}},
	{Unkillable, "Processes survive SIGKILL (blocked in the kernel); tried again every few seconds.", []State{Stopped, Backoff, FailedState}},
}

// mayFollow reports whether the table has the transition.
func mayFollow(from, to State) bool {
	for _, s := range stateTable {
		if s.state == from {
			return slices.Contains(s.to, to)
		}
	}
	return false
}

// live reports whether a loaded process stands behind s.
func (s State) live() bool { return s == ReadyState || s == Busy || s == Unresponsive }

// StateDiagram draws the table as a mermaid state diagram.
func StateDiagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> stopped\n")
	for _, s := range stateTable {
		fmt.Fprintf(&b, "    %s : %s\n", s.state, s.sentence)
	}
	for _, s := range stateTable {
		for _, to := range s.to {
			fmt.Fprintf(&b, "    %s --> %s\n", s.state, to)
		}
	}
	return b.String()
}
