package sched

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Defaults of Options.
const (
	DefaultMaxStartFailures = 5
	coolDownFirst           = 10 * time.Second
	coolDownMax             = 5 * time.Minute
	// heartbeat bounds the time between two passes: the watchdog reads it, and
	// a lost wake-up would cost no more than this.
	heartbeat = 5 * time.Second
)

// ErrStopping answers requests that come while the scheduler shuts down.
var ErrStopping = errors.New("the scheduler is shutting down")

// errUserCancelled, errRunTimeout are the causes with which a run is cancelled
// from inside; any other cause means that the daemon shuts down.
var (
	errUserCancelled = errors.New("cancelled by request")
	errRunTimeout    = errors.New("run timeout")
)

// Options of a Scheduler. Queue, Workers, Gate, Catalog and at least one
// policy are needed; everything else has a usable zero value.
type Options struct {
	Queue   Queue
	Workers Workers
	Gate    Gate
	Catalog Catalog

	Policies []Policy // what SetPolicy may choose from
	Policy   string   // the first one when ""

	Journal events.Recorder
	Log     *zap.Logger
	Metrics prometheus.Registerer
	Now     func() time.Time
	// AfterFunc and Go stand for time.AfterFunc and the go statement, for simulations.
	AfterFunc func(d time.Duration, f func()) (stop func() bool)
	Go        func(f func())

	Slots            int            // jobs that may run at once on the whole machine; 0: no bound
	RAMMargin        resource.Bytes // host memory that is never given away
	MaxStartFailures int            // failed starts in a row until a person must look; 0: DefaultMaxStartFailures
	// Margins and Margin are what of a device is never given away: by its id, and
	// for those without an entry.
	Margins map[resource.DeviceID]resource.Bytes
	Margin  resource.Bytes
	// MaxRunningPerSubmitter bounds the jobs of one submitter that run at once; 0: no bound.
	MaxRunningPerSubmitter int

	// What outlives the process; nil: nothing of the kind does.
	Profiles Profiles
	Claims   ClaimsLog
	Leases   LeaseStore
}

// Scheduler decides what may run and sees it through. All methods are safe
// from any goroutine; those that act do so through the loop in Run.
type Scheduler struct {
	o       Options
	log     *zap.Logger
	mail    *mailbox
	metrics *metrics
	lastRun atomic.Int64 // unix nanoseconds of the last completed pass

	started chan struct{} // closed when Run has begun
	policy  atomic.Pointer[Policy]
	book    atomic.Pointer[book] // who held what when the devices were last read
	shut    atomic.Pointer[[]string]

	configuring sync.Map // instance → chan struct{} of capacity 1: one Configure at a time
}

// New checks the options and returns a scheduler that does nothing until Run.
func New(o Options) (*Scheduler, error) {
	if o.Queue == nil || o.Workers == nil || o.Gate == nil || o.Catalog == nil {
		return nil, errors.New("cannot make a scheduler without queue, workers, gate and catalog")
	}
	if len(o.Policies) == 0 {
		return nil, errors.New("cannot make a scheduler without a policy")
	}
	if o.Slots < 0 || o.RAMMargin < 0 || o.Margin < 0 {
		return nil, errors.New("cannot make a scheduler with negative slots or a negative memory margin")
	}
	if o.Policy == "" {
		o.Policy = o.Policies[0].Name()
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxStartFailures <= 0 {
		o.MaxStartFailures = DefaultMaxStartFailures
	}
	if o.AfterFunc == nil {
		o.AfterFunc = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	}
	if o.Go == nil {
		o.Go = func(f func()) { go f() }
	}
	s := &Scheduler{o: o, log: o.Log, mail: newMailbox(), started: make(chan struct{})}
	p, err := s.policyNamed(o.Policy)
	if err != nil {
		return nil, err
	}
	s.policy.Store(&p)
	if s.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, fmt.Errorf("cannot register scheduler metrics: %w", err)
	}
	return s, nil
}

// PolicyError says that there is no policy of a name.
type PolicyError struct {
	Name  string
	Known []string
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("there is no policy %q; known are %v", e.Name, e.Known)
}

func (s *Scheduler) policyNamed(name string) (Policy, error) {
	i := slices.IndexFunc(s.o.Policies, func(p Policy) bool { return p.Name() == name })
	if i < 0 {
		return nil, &PolicyError{Name: name, Known: s.policyNames()}
	}
	return s.o.Policies[i], nil
}

func (s *Scheduler) policyNames() []string {
	names := make([]string, len(s.o.Policies))
	for i, p := range s.o.Policies {
		names[i] = p.Name()
	}
	return names
}

// SetPolicy changes the policy from the next pass on. The change is in the
// journal when it returns. *PolicyError for an unknown name.
func (s *Scheduler) SetPolicy(ctx context.Context, name string) error {
	p, err := s.policyNamed(name)
	if err != nil {
		return err
	}
	if s.o.Journal != nil {
		_, err := s.o.Journal.Record(ctx, events.Draft{Kind: events.SchedulerChanged, Data: map[string]string{"policy": name}})
		if err != nil {
			return fmt.Errorf("cannot change the policy to %q: %w", name, err)
		}
	}
	s.policy.Store(&p)
	s.mail.ring()
	return nil
}

// emit writes into the journal, without waiting for it.
func (s *Scheduler) emit(drafts ...events.Draft) {
	if s.o.Journal != nil && len(drafts) > 0 {
		s.o.Journal.Emit(drafts...)
	}
}

// Heartbeat returns when the last pass was completed; zero before the first.
// A healthy loop completes one at least every few seconds.
func (s *Scheduler) Heartbeat() time.Time {
	if n := s.lastRun.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Run is the scheduling loop. It admits until admit ends and returns when no
// run is left; work ending cancels the runs that are left, whose jobs return
// to the queue as interrupted. It may be called once.
func (s *Scheduler) Run(admit, work context.Context) error {
	l := newLoop(s, work)
	close(s.started)
	err := l.run(admit)
	for _, f := range s.mail.close() {
		f(nil) // those who asked last hear ErrStopping
	}
	l.wg.Wait()
	return err
}
