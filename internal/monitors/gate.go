package monitors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"go.uber.org/zap"
)

// Defaults of Options.
const (
	DefaultMaxAge = 10 * time.Second
	backoffFirst  = time.Second
	backoffMax    = time.Minute
	// hangFactor times MaxAge without a reading, a monitor's run is cancelled so
	// that it can be started afresh.
	hangFactor = 3
	// leaveGrace is how long Run waits at its end for a monitor that hangs.
	leaveGrace = 2 * time.Second
)

// Options of a Gate; the zero value is usable.
type Options struct {
	MaxAge       time.Duration // a reading older than this is stale; 0: DefaultMaxAge
	Pace         *Pace
	Constructors []Constructor
	// Plugin makes the monitor of a plugin; nil: there are none. explicit is
	// true where nothing but a plugin can be meant; else it answers nil for a name
	// that no plugin bears now.
	Plugin  func(name string, explicit bool, p *Pace) (Monitor, error)
	Clock   func() time.Time
	Log     *zap.Logger
	Journal events.Recorder
}

// States of the registered monitor.
const (
	StateStarting = "starting" // registered, no reading yet
	StateFresh    = "fresh"
	StateStale    = "stale"  // silent for longer than MaxAge
	StateFailed   = "failed" // its run ended; it is started again after a delay
)

// MonitorState describes the registered monitor for people.
type MonitorState struct {
	Name       string
	State      string
	Error      string
	LastSample time.Time // arrival of the newest reading; zero before the first
	Restarts   int
	RetryAt    time.Time // when a failed monitor is started again
}

// Gate runs the registered monitor and holds its newest reading.
type Gate struct {
	o       Options
	changed chan struct{} // capacity 1: merged wake-up
	swap    chan struct{} // capacity 1: another monitor was registered

	mu      sync.Mutex
	next    chan struct{} // closed and replaced at every change: the broadcast
	monitor Monitor       // nil: none registered
	snap    resource.Snapshot
	arrived time.Time // of snap, by our clock; zero: nothing of this monitor yet
	state   MonitorState
}

// New returns a gate without a monitor; it starts nothing.
func New(o Options) (*Gate, error) {
	if o.MaxAge < 0 {
		return nil, errors.New("cannot make a gate with a negative maximum age")
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.Pace == nil {
		o.Pace = NewPace(0, 0)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Gate{o: o, changed: make(chan struct{}, 1), swap: make(chan struct{}, 1), next: make(chan struct{})}, nil
}

// Register makes m the system monitor, in place of any other. Readings of the
// earlier one are forgotten: nothing is fresh until m has spoken. The event is
// in the journal when it returns.
func (g *Gate) Register(ctx context.Context, m Monitor) error {
	if g.o.Journal != nil {
		_, err := g.o.Journal.Record(ctx, draft(m.Name(), "registered", ""))
		if err != nil {
			return fmt.Errorf("cannot register monitor %q: %w", m.Name(), err)
		}
	}
	g.mu.Lock()
	g.monitor, g.snap, g.arrived = m, resource.Snapshot{}, time.Time{}
	g.state = MonitorState{Name: m.Name(), State: StateStarting}
	g.tellLocked()
	g.mu.Unlock()
	ring(g.swap)
	ring(g.changed)
	return nil
}

// PluginPrefix before a name says that a plugin is meant, be it there yet or not.
const PluginPrefix = "plugin:"

// RegisterName makes and registers the monitor of a name: "plugin:" and an
// instance, a built-in one by its name or alias, or an instance by its bare
// name. A plugin that bears a built-in monitor's alias replaces it.
// *UnknownError when there is none.
func (g *Gate) RegisterName(ctx context.Context, name string) error {
	m, err := g.named(name)
	if err != nil {
		return fmt.Errorf("cannot make monitor %q: %w", name, err)
	}
	if m == nil {
		return &UnknownError{Name: name, Known: g.Known()}
	}
	return g.Register(ctx, m)
}

// named makes the monitor of a name, nil when there is none.
func (g *Gate) named(name string) (Monitor, error) {
	plugin, explicit := strings.CutPrefix(name, PluginPrefix)
	i := slices.IndexFunc(g.o.Constructors, func(c Constructor) bool { return c.called(name) })
	if g.o.Plugin != nil && plugin != "" && (i < 0 || g.o.Constructors[i].Name != name) {
		m, err := g.o.Plugin(plugin, explicit, g.o.Pace)
		if m != nil || err != nil {
			return m, err
		}
	}
	if i < 0 {
		return nil, nil
	}
	return g.o.Constructors[i].New(g.o.Pace)
}

// Instance is the plugin instance that serves the registered monitor, "" when
// none does: its worker must stay.
func (g *Gate) Instance() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m, ok := g.monitor.(interface{ Instance() string }); ok {
		return m.Instance()
	}
	return ""
}

// Known lists the names that RegisterName accepts, without aliases.
func (g *Gate) Known() []string {
	names := make([]string, len(g.o.Constructors))
	for i, c := range g.o.Constructors {
		names[i] = c.Name
	}
	return names
}

// Registered names the system monitor, "" when there is none.
func (g *Gate) Registered() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state.Name
}

// Latest returns the newest reading. fresh is false when there is none, or when
// the monitor has been silent longer than MaxAge; callers must then admit
// nothing that needs a fact.
func (g *Gate) Latest() (s resource.Snapshot, fresh bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.snap, g.freshLocked()
}

func (g *Gate) freshLocked() bool {
	return !g.arrived.IsZero() && g.o.Clock().Sub(g.arrived) <= g.o.MaxAge
}

// Changed is signalled for every reading and whenever readings become stale or
// another monitor is registered. Wake-ups merge; one reader only.
func (g *Gate) Changed() <-chan struct{} { return g.changed }

// Watch returns a channel that is closed at the next occasion of Changed. For
// any number of readers; look at Latest after it, then Watch again.
func (g *Gate) Watch() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.next
}

func (g *Gate) tellLocked() {
	close(g.next)
	g.next = make(chan struct{})
}

// SetActive asks for fast sampling while something loads, runs or is released.
func (g *Gate) SetActive(active bool) { g.o.Pace.SetActive(active) }

// State describes the registered monitor; empty when there is none.
func (g *Gate) State() []MonitorState {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.monitor == nil {
		return nil
	}
	st := g.state
	if st.State == StateFresh && !g.freshLocked() {
		st.State = StateStale
	}
	return []MonitorState{st}
}

// Run runs the registered monitor, restarting and replacing it as needed, until
// ctx ends. It returns an error only when a monitor does not end with it.
func (g *Gate) Run(ctx context.Context) error {
	var left sync.WaitGroup
	for ctx.Err() == nil {
		select {
		case <-g.swap: // seen by what follows
		default:
		}
		m := g.current()
		if m == nil {
			select {
			case <-g.swap:
			case <-ctx.Done():
			}
			continue
		}
		w := &watch{g: g, m: m, out: make(chan resource.Snapshot)}
		w.run(ctx, &left)
	}
	gone := make(chan struct{})
	go func() { left.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-time.After(leaveGrace):
		return fmt.Errorf("monitor %q did not end in time", g.Registered())
	}
}

func (g *Gate) current() Monitor {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.monitor
}

// note changes the state of m, if it is still the registered one, and journals
// a change of the state's name.
func (g *Gate) note(m Monitor, state, problem string, change func()) {
	g.mu.Lock()
	if g.monitor != m {
		g.mu.Unlock()
		return
	}
	was := g.state.State
	g.state.State, g.state.Error = state, problem
	if change != nil {
		change()
	}
	g.tellLocked()
	g.mu.Unlock()
	if was != state {
		g.o.Log.Info("monitor changed", zap.String("monitor", m.Name()), zap.String("state", state), zap.String("error", problem))
		if g.o.Journal != nil {
			g.o.Journal.Emit(draft(m.Name(), state, problem))
		}
	}
	ring(g.changed)
}

func draft(monitor, state, problem string) events.Draft {
	data := map[string]string{"monitor": monitor, "state": state}
	if problem != "" {
		data["error"] = problem
	}
	return events.Draft{Kind: events.MonitorChanged, Data: data}
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
