// Package monitors owns the facts about the machine: the Monitor contract, and
// the Gate, which runs the one that is registered as the system monitor, keeps
// its newest reading and says whether it is still young enough to act on. A
// monitor that hangs or fails makes readings stale and is started again with a
// growing delay; it never takes the daemon down. Gate's methods are safe from
// any goroutine and never block on a monitor. Start with Monitor, then Gate
// (gate.go); monitortest is the conformance suite for new monitors.
package monitors

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// ErrUnsupported is wrapped by Monitor.Run where the machine lacks the means
// (no driver, no such file system); the Gate then tries again rarely.
var ErrUnsupported = errors.New("not supported on this machine")

// Monitor is a source of system facts.
type Monitor interface {
	Name() string
	// Run sends snapshots until ctx ends, the first one as soon as it can and
	// complete. It never closes out, stops waiting for a reader when ctx ends,
	// and may be called again after it returned.
	Run(ctx context.Context, out chan<- resource.Snapshot) error
}

// Constructor makes a built-in monitor when somebody registers its name.
type Constructor struct {
	Name    string
	Aliases []string
	New     func(p *Pace) (Monitor, error)
}

func (c *Constructor) called(name string) bool {
	if c.Name == name {
		return true
	}
	for _, a := range c.Aliases {
		if a == name {
			return true
		}
	}
	return false
}

// UnknownError says that no monitor of a name can be made.
type UnknownError struct {
	Name  string
	Known []string
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("there is no monitor %q; known are %s", e.Name, strings.Join(e.Known, ", "))
}

// Intervals of sampling.
const (
	FastInterval = 200 * time.Millisecond
	IdleInterval = 3 * time.Second
)

// Pace tells a monitor when to take its next sample: often while something
// loads, runs or is released, rarely on an idle machine.
type Pace struct {
	fast, idle time.Duration

	mu     sync.Mutex
	active bool
	turned chan struct{} // closed and replaced when active becomes true
}

// NewPace returns a Pace that is idle; zero intervals mean the defaults.
func NewPace(fast, idle time.Duration) *Pace {
	if fast <= 0 {
		fast = FastInterval
	}
	if idle <= 0 {
		idle = IdleInterval
	}
	return &Pace{fast: fast, idle: idle, turned: make(chan struct{})}
}

// SetActive switches between fast and idle; becoming active makes a sample due
// at once.
func (p *Pace) SetActive(active bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if active && !p.active {
		close(p.turned)
		p.turned = make(chan struct{})
	}
	p.active = active
}

// Wait returns when the next sample is due, or with ctx's error.
func (p *Pace) Wait(ctx context.Context) error {
	p.mu.Lock()
	d, turned := p.idle, p.turned
	if p.active {
		d = p.fast
	}
	p.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-turned:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
