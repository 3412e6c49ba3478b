package jobs

import (
	"fmt"
	"strings"
)

// State is one place of a job's life: its status refined by the phase.
type State struct {
	Status Status
	Phase  Phase // "" once final
}

func (s State) String() string {
	if s.Phase == "" {
		return string(s.Status)
	}
	return string(s.Phase)
}

// StateInfo says in one sentence what a state means and lists where a job may
// go from it. Every other move is refused.
type StateInfo struct {
	State    State
	Sentence string
	To       []Move
}

// Move is one allowed transition and what causes it.
type Move struct {
	To    State
	Cause string
}

var (
	stQueued     = State{Pending, Queued}
	stBlocked    = State{Pending, Blocked}
	stHeld       = State{Pending, Held}
	stReserving  = State{Running, Reserving}
	stLoading    = State{Running, Loading}
	stExecuting  = State{Running, Executing}
	stCancelling = State{Running, Cancelling}
	stCompleted  = State{Completed, ""}
	stFailed     = State{Failed, ""}
	stCancelled  = State{Cancelled, ""}
)

// States returns the whole table: what a job can be and where it can go. The
// diagram of docs/ARCHITECTURE.md is drawn from it (Mermaid).
func States() []StateInfo {
	pendingEnds := []Move{
		{stCancelled, "cancelled while pending"},
		{stFailed, "queue timeout, or it can never run"},
	}
	runningEnds := []Move{
		{stCompleted, "result stored"},
		{stFailed, "error, no attempt left"},
		{stCancelled, "cancel obeyed"},
		{stQueued, "requeued: retriable error, worker lost or interrupted"},
	}
	return []StateInfo{
		{stQueued, "May start as soon as the scheduler finds room for it.", append([]Move{
			{stBlocked, "something is in the way"}, {stHeld, "hold"}, {stReserving, "admitted"}}, pendingEnds...)},
		{stBlocked, "Cannot start now; its block says why and until when.", append([]Move{
			{stQueued, "nothing is in the way any more"}, {stHeld, "hold"}}, pendingEnds...)},
		{stHeld, "Kept back by its owner until released.", append([]Move{
			{stQueued, "release"}}, pendingEnds...)},
		{stReserving, "Admitted; memory and a slot are being set aside.", append([]Move{
			{stLoading, "worker must load"}, {stExecuting, "worker is ready"}, {stCancelling, "cancel"}}, runningEnds...)},
		{stLoading, "Waits for its worker to load.", append([]Move{
			{stExecuting, "worker is ready"}, {stCancelling, "cancel"}}, runningEnds...)},
		{stExecuting, "Its call runs on a worker.", append([]Move{
			{stLoading, "the worker was gone before the call came"}, {stCancelling, "cancel or run timeout"}}, runningEnds...)},
		{stCancelling, "Has been asked to stop and has not stopped yet.", runningEnds},
		{stCompleted, "Ended with a result.", nil},
		{stFailed, "Ended with an error.", nil},
		{stCancelled, "Ended because someone asked for it; a partial result may be kept.", nil},
	}
}

// CanMove reports whether the table allows a job to go from one state to
// another. Staying is always allowed for a state that is not final.
func CanMove(from, to State) bool {
	for _, info := range States() {
		if info.State != from {
			continue
		}
		if from == to {
			return !from.Status.Final()
		}
		for _, m := range info.To {
			if m.To == to {
				return true
			}
		}
	}
	return false
}

// Mermaid draws the table as a Mermaid state diagram.
func Mermaid() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> queued: submit\n    [*] --> held: submit on hold\n")
	for _, info := range States() {
		fmt.Fprintf(&b, "    %s: %s\n", info.State, info.State)
		fmt.Fprintf(&b, "    note right of %s: %s\n", info.State, info.Sentence)
		for _, m := range info.To {
			fmt.Fprintf(&b, "    %s --> %s: %s\n", info.State, m.To, m.Cause)
		}
		if info.State.Status.Final() {
			fmt.Fprintf(&b, "    %s --> [*]\n", info.State)
		}
	}
	return b.String()
}
