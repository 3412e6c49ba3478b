package supervisor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/basic"
	"github.com/cjmd/cjmd/internal/isolation/none"
	"github.com/cjmd/cjmd/internal/isolation/proc"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
)

// testWorker is the built test worker.
var testWorker string

func TestMain(m *testing.M) {
	if code, ok := reexec.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if len(os.Args) > 3 && os.Args[1] == verbDaemon {
		os.Exit(daemonMain(os.Args[2:]))
	}
	os.Exit(run(m))
}

// quickExit keeps the race detector from sleeping a second at the end of every helper process.
func quickExit() []string { return []string{"GORACE=atexit_sleep_ms=0"} }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "testworker")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	testWorker = filepath.Join(dir, "testworker")
	if out, err := exec.Command("go", "build", "-o", testWorker, "./testworker").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s", err, out)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// journal collects the drafts of worker states.
type journal struct {
	mu   sync.Mutex
	seen []string // "from>to", or the kind of another event
	more chan struct{}
}

func (j *journal) Record(context.Context, ...events.Draft) ([]events.Event, error) { return nil, nil }

func (j *journal) Emit(drafts ...events.Draft) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range drafts {
		if d.Kind != events.WorkerState {
			j.seen = append(j.seen, string(d.Kind))
			continue
		}
		b, err := json.Marshal(d.Data)
		if err != nil {
			panic(err)
		}
		var s struct{ From, To string }
		if err := json.Unmarshal(b, &s); err != nil {
			panic(err)
		}
		j.seen = append(j.seen, s.From+">"+s.To)
	}
	close(j.more)
	j.more = make(chan struct{})
}

// wait returns once the journal has entry.
func (j *journal) wait(t *testing.T, entry string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		j.mu.Lock()
		seen, more := append([]string{}, j.seen...), j.more
		j.mu.Unlock()
		for _, s := range seen {
			if s == entry {
				return
			}
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the journal never had %s: %v", entry, seen)
		}
	}
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string{}, j.seen...)
}

// box is a supervisor with real processes.
type box struct {
	*supervisor.Supervisor
	t       *testing.T
	journal *journal
	mark    string
	mu      sync.Mutex
	spec    supervisor.Spec // guarded by mu; what the catalog answers
	logs    string
}

// Spec implements supervisor.Catalog.
func (b *box) Spec(_ context.Context, instance string, devices []string) (supervisor.Spec, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.spec
	s.Instance, s.Hello.Instance = instance, instance
	if devices != nil {
		s.Env = append(slices.Clone(s.Env), "DEVICES="+strings.Join(devices, ","))
	}
	return s, nil
}

func (b *box) set(f func(*supervisor.Spec)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.spec)
}

// worker sets the flags of the test worker.
func (b *box) worker(flags ...string) {
	b.set(func(s *supervisor.Spec) { s.Command = append([]string{testWorker}, flags...) })
}

// setup returns a running supervisor and checks, at the end, that it leaves
// nothing: no goroutine, no process, no cgroup.
func setup(t *testing.T, adjust func(*supervisor.Options, *tree.Options)) *box {
	t.Helper()
	b := &box{t: t, journal: &journal{more: make(chan struct{})}, mark: "CJM_SUPERVISOR_TEST=" + t.Name() + "#", logs: t.TempDir()}
	b.spec = supervisor.Spec{
		Plugin: "test", Transport: "native", Dir: t.TempDir(), Concurrency: 2,
		Env:   []string{"PATH=" + os.Getenv("PATH"), b.mark},
		Hello: supervisor.Hello{Plugin: "test", Config: json.RawMessage(`{}`), Concurrent: 2},
	}
	b.worker()
	to := tree.Options{ReexecEnv: quickExit(), StateDir: t.TempDir()}
	o := supervisor.Options{
		Catalog: b, Transports: []supervisor.Transport{rpc.New(rpc.Options{})}, Journal: b.journal,
		LogRoot: b.logs, Log: zaptest.NewLogger(t), SampleEvery: 20 * time.Millisecond,
		Jitter: func() float64 { return 0 },
	}
	if adjust != nil {
		adjust(&o, &to)
	}
	host, err := tree.New(to)
	if err != nil {
		t.Fatal(err)
	}
	if o.Tiers == nil {
		o.Tiers = []isolation.Tier{none.New(host), basic.New(host)}
	}
	if b.Supervisor, err = supervisor.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := host.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if left := b.survivors(); len(left) > 0 {
			t.Errorf("processes left: %+v", left)
		}
	})
	return b
}

// survivors are the living processes that carry the test's mark.
func (b *box) survivors() []proc.Stat {
	b.t.Helper()
	all, err := proc.All()
	if err != nil {
		b.t.Fatal(err)
	}
	var out []proc.Stat
	for pid, s := range all {
		if !s.Dead() && proc.HasEnvPrefix(pid, b.mark) {
			out = append(out, s)
		}
	}
	return out
}

func (b *box) ready() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := b.EnsureReady(ctx, "w"); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) status() supervisor.Status {
	b.t.Helper()
	st, ok := b.Status("w")
	if !ok {
		b.t.Fatal("no such worker")
	}
	return st
}

// sink records what a call produced and signals the first of each kind.
type sink struct {
	mu       sync.Mutex
	chunks   int                     // guarded by mu
	logs     []supervisor.LogRecord  // guarded by mu
	phases   []supervisor.CancelMode // guarded by mu
	progress chan struct{}           // capacity 1
}

func newSink() *sink { return &sink{progress: make(chan struct{}, 1)} }

func (s *sink) Chunk(uint64, []byte) { s.mu.Lock(); defer s.mu.Unlock(); s.chunks++ }
func (s *sink) Progress(float64, string) {
	select {
	case s.progress <- struct{}{}:
	default:
	}
}
func (s *sink) Log(r supervisor.LogRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, r)
}
func (s *sink) CancelPhase(m supervisor.CancelMode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phases = append(s.phases, m)
}

func call(id string, args ...any) supervisor.Call {
	b, err := json.Marshal(args)
	if err != nil {
		panic(err)
	}
	return supervisor.Call{ID: id, Attempt: 1, Args: b, Kwargs: json.RawMessage(`{}`)}
}
