// Package auto is the monitor that takes the first of several that this machine
// supports: it tries them for real, in order, and goes on with the one that
// gives a reading. Where one that it would rather have appears later (a driver
// that is loaded after the daemon), it changes over. A monitor that worked and
// fails is a failure, never a reason to go on with a lesser one: a box with a
// broken GPU must not look like one without. Start with Monitor.Run.
package auto

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
)

// Name under which the monitor is registered.
const Name = "auto"

// DefaultLookAgain is how often a better monitor is looked for.
const DefaultLookAgain = time.Minute

// Options of a Monitor.
type Options struct {
	// Candidates in order of preference; at least one. One with a Probe method
	// (func(context.Context) error) is looked for again while a later one runs.
	Candidates []monitors.Monitor
	LookAgain  time.Duration // 0: DefaultLookAgain
}

// Monitor runs one of its candidates. Run may be called by one goroutine at a
// time.
type Monitor struct {
	o Options
	// chosen is the place of the candidate that gave the last reading, -1 before
	// the first; owned by Run.
	chosen int
}

// New returns a monitor; it tries nothing yet.
func New(o Options) (*Monitor, error) {
	if len(o.Candidates) == 0 {
		return nil, errors.New("cannot choose a monitor among none")
	}
	if o.LookAgain <= 0 {
		o.LookAgain = DefaultLookAgain
	}
	return &Monitor{o: o, chosen: -1}, nil
}

// Constructor is the monitor's row in the list of built-in ones; list are those
// that it chooses from.
func Constructor(list ...monitors.Constructor) monitors.Constructor {
	return monitors.Constructor{Name: Name, New: func(p *monitors.Pace) (monitors.Monitor, error) {
		var o Options
		for i := range list {
			m, err := list[i].New(p)
			if err != nil {
				return nil, fmt.Errorf("cannot make monitor %q: %w", list[i].Name, err)
			}
			o.Candidates = append(o.Candidates, m)
		}
		return New(o)
	}}
}

// Name is "auto".
func (m *Monitor) Name() string { return Name }

// errBetter ends a candidate's run because one before it is there now.
var errBetter = errors.New("a better monitor appeared")

// Run implements monitors.Monitor. Details of its snapshots say which candidate
// they are of ("monitor") and why those before it are not in use ("not_used").
func (m *Monitor) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	for {
		err := m.choose(ctx, out)
		if !errors.Is(err, errBetter) {
			return err
		}
	}
}

// choose tries the candidates in order and returns when the one that runs ends.
func (m *Monitor) choose(ctx context.Context, out chan<- resource.Snapshot) error {
	passed := make(map[string]string)
	var why []string
	for i, c := range m.o.Candidates {
		err := m.run(ctx, i, passed, out)
		if !errors.Is(err, monitors.ErrUnsupported) {
			return err
		}
		passed[c.Name()] = err.Error()
		why = append(why, err.Error())
	}
	return fmt.Errorf("%w: %s", monitors.ErrUnsupported, strings.Join(why, "; "))
}

// run runs candidate i until it ends or one before it can take over.
func (m *Monitor) run(ctx context.Context, i int, passed map[string]string, out chan<- resource.Snapshot) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := m.o.Candidates[i]
	own, ended := make(chan resource.Snapshot), make(chan error, 1)
	go func() { ended <- guarded(ctx, c, own) }()
	looked := make(chan struct{})
	go func() { defer close(looked); m.lookForBetter(ctx, i, cancel) }()
	defer func() { cancel(nil); <-looked }()
	for {
		select {
		case s := <-own:
			m.chosen = i
			sign(&s, c.Name(), passed)
			select {
			case out <- s:
			case <-ctx.Done(): // seen below, once c has ended
			}
		case err := <-ended:
			if errors.Is(context.Cause(ctx), errBetter) {
				return errBetter
			}
			if err == nil {
				err = fmt.Errorf("monitor %q ended", c.Name())
			}
			if m.chosen == i && errors.Is(err, monitors.ErrUnsupported) {
				return fmt.Errorf("monitor %q worked before: %v", c.Name(), err)
			}
			return err
		}
	}
}

// lookForBetter probes the candidates before i from time to time and calls
// cancel when one would work.
func (m *Monitor) lookForBetter(ctx context.Context, i int, cancel context.CancelCauseFunc) {
	if i == 0 {
		return
	}
	t := time.NewTicker(m.o.LookAgain)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, c := range m.o.Candidates[:i] {
			if p, ok := c.(interface{ Probe(context.Context) error }); ok && p.Probe(ctx) == nil {
				cancel(errBetter)
				return
			}
		}
	}
}

// guarded runs a candidate in a goroutine of ours, where a panic would end the
// daemon.
func guarded(ctx context.Context, c monitors.Monitor, out chan<- resource.Snapshot) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("monitor %q panicked: %v", c.Name(), p)
		}
	}()
	return c.Run(ctx, out)
}

// sign makes a candidate's snapshot ours. Its details are copied: what was sent
// may be kept by who sent it.
func sign(s *resource.Snapshot, by string, passed map[string]string) {
	details := make(map[string]any, len(s.Details)+2)
	for k, v := range s.Details {
		details[k] = v
	}
	details["monitor"] = by
	if len(passed) > 0 {
		details["not_used"] = passed
	}
	s.Monitor, s.Details = Name, details
}
