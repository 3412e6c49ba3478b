package proc

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// KillAll ends every process that find selects, however fast they fork: it
// stops them first, until a pass over /proc finds no running newcomer, then
// kills them, and repeats until a pass finds none alive. find gets the table of
// each pass; zombies are ignored. It returns how many processes it killed, and
// an error naming the survivors when ctx ends first.
func KillAll(ctx context.Context, find func(Table) []Stat) (killed int, err error) {
	const stopPasses = 10 // a swarm that is never seen at rest is killed anyway
	pause := 500 * time.Microsecond
	seen := map[ID]bool{}
	for pass := 0; ; pass++ {
		t, err := All()
		if err != nil {
			return killed, err
		}
		alive := living(find(t))
		if len(alive) == 0 {
			return killed, nil
		}
		fresh := false
		for _, s := range alive {
			if !seen[s.ID()] {
				seen[s.ID()], fresh = true, true
				_ = Signal(s.ID(), syscall.SIGSTOP) // best effort: the kill below is what counts
			}
		}
		if fresh && len(alive) > 1 && pass < stopPasses {
			continue
		}
		var refused error
		for _, s := range alive {
			if err := Signal(s.ID(), syscall.SIGKILL); err != nil {
				refused = err
			}
		}
		killed = len(seen)
		select {
		case <-ctx.Done():
			if refused == nil {
				refused = ctx.Err()
			}
			return killed, fmt.Errorf("cannot end %d processes %v: %w", len(alive), pids(alive), refused)
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
		}
	}
}

func living(in []Stat) []Stat {
	out := in[:0]
	for _, s := range in {
		if !s.Dead() {
			out = append(out, s)
		}
	}
	return out
}

// pids lists at most sixteen of them: a message is no place for a fork bomb.
func pids(in []Stat) []int {
	var out []int
	for _, s := range in[:min(len(in), 16)] {
		out = append(out, s.PID)
	}
	return out
}
