// Package transporttest is the conformance suite of the transports: one set of
// calls, run through a real supervisor on real processes, that every transport
// and every worker must answer in the same way. Start with Target and Run; the
// plugin that is called is testdata/suite_plugin.py, or whatever serves the same
// ops.
package transporttest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/none"
	"github.com/cjmd/cjmd/internal/isolation/proc"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// instance is the one worker of a bench.
const instance = "w"

// Target is a transport with a worker at its other end.
type Target struct {
	Transport supervisor.Transport
	Command   []string
	Env       []string // beside PATH
	Module    string
	Class     string
	Adapters  []string

	// Category says what an error of this category arrives as; nil: as it is.
	Category func(want string) string
	// Interrupts: a call that ignores the cooperative cancel can be interrupted and
	// its worker survives.
	Interrupts bool
	// Blocks: a unary call makes the worker deaf, so it has no progress and is
	// cancelled by a kill.
	Blocks bool
	// Program: each call is a process of its own: nothing of the plugin is kept
	// between two, and there is nothing to initialise.
	Program bool
}

// Main is a package's TestMain: it runs the re-exec verbs, then the tests, and
// fails when a goroutine is left. others are verbs of the package under test.
func Main(m *testing.M, others ...func(args []string) (code int, ok bool)) {
	for _, dispatch := range append(others, reexec.Dispatch) {
		if code, ok := dispatch(os.Args[1:]); ok {
			os.Exit(code)
		}
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// Data is the absolute path of a file of testdata.
func Data(name string) string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "testdata", name)
}

// Run runs the suite.
func Run(t *testing.T, target Target) {
	for _, c := range []struct {
		name string
		run  func(*bench)
	}{
		{"Ready", ready}, {"Unary", unary}, {"Stream", stream}, {"Errors", failures}, {"ErrorInAStream", failureInStream},
		{"Progress", progress}, {"CancelCooperative", cancelCooperative}, {"CancelDeaf", cancelDeaf}, {"CancelStream", cancelStream},
		{"CancelBeforeTheCall", cancelBefore}, {"LargePayloads", largePayloads}, {"ResultOverTheLimit", overLimit}, {"Concurrent", concurrent},
		{"Configure", configure}, {"BusyIsNotFrozen", busy}, {"SameCallTwice", sameCallTwice},
		{"DeathInACall", deathInCall}, {"DeathInAStream", deathInStream}, {"Stop", stop}, {"CannotLoad", cannotLoad},
		{"CannotInitialise", cannotInitialise}, {"LeavesNothing", leavesNothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(setup(t, target, nil))
		})
	}
}

// bench is a supervisor with one instance of the target.
type bench struct {
	*testing.T
	*supervisor.Supervisor
	target Target
	mark   string
	spec   supervisor.Spec // never changed after setup
	calls  int
}

// Spec implements supervisor.Catalog.
func (b *bench) Spec(context.Context, string, []string) (supervisor.Spec, error) { return b.spec, nil }

// setup starts a supervisor and checks at the end that it leaves no process.
func setup(t *testing.T, target Target, adjust func(*supervisor.Options, *supervisor.Spec)) *bench {
	t.Helper()
	b := &bench{T: t, target: target, mark: fmt.Sprintf("CJM_SUITE=%s.%d.", strings.ReplaceAll(t.Name(), "/", "."), os.Getpid())}
	env := append([]string{"PATH=" + os.Getenv("PATH"), "PYTHONDONTWRITEBYTECODE=1", "GORACE=atexit_sleep_ms=0", b.mark}, target.Env...)
	b.spec = supervisor.Spec{
		Instance: instance, Plugin: "suite", Transport: target.Transport.Name(), Command: target.Command, Dir: t.TempDir(), Env: env,
		Concurrency: 2, StopGrace: 8 * time.Second,
		Hello: supervisor.Hello{
			Instance: instance, Plugin: "suite", Module: target.Module, Class: target.Class, Adapters: target.Adapters,
			Config: json.RawMessage(`{"speed":1}`), Concurrent: 2, Limits: supervisor.Limits{MaxPayload: 16 << 20},
		},
	}
	o := supervisor.Options{
		Catalog: b, Transports: []supervisor.Transport{target.Transport}, LogRoot: t.TempDir(), Log: zaptest.NewLogger(t),
		SampleEvery: 20 * time.Millisecond, Jitter: func() float64 { return 0 }, CancelGrace: 500 * time.Millisecond, Interrupt: 5 * time.Second,
	}
	if adjust != nil {
		adjust(&o, &b.spec)
	}
	host, err := tree.New(tree.Options{ReexecEnv: []string{"GORACE=atexit_sleep_ms=0"}, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	o.Tiers = []isolation.Tier{none.New(host)}
	if b.Supervisor, err = supervisor.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Supervisor.Run(ctx) }()
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

// survivors are the living processes that carry the bench's mark.
func (b *bench) survivors() []proc.Stat {
	b.Helper()
	all, err := proc.All()
	if err != nil {
		b.Fatal(err)
	}
	var out []proc.Stat
	for pid, s := range all {
		if !s.Dead() && proc.HasEnvPrefix(pid, b.mark) {
			out = append(out, s)
		}
	}
	return out
}

// ctx bounds a step that would otherwise hang.
func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	b.Cleanup(cancel)
	return ctx
}

// load starts the worker.
func (b *bench) load() {
	b.Helper()
	b.Reset(instance)
	if err := b.EnsureReady(b.ctx(), instance); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) status() supervisor.Status {
	b.Helper()
	st, ok := b.Status(instance)
	if !ok {
		b.Fatal("no such worker")
	}
	return st
}

// call makes a call of an op with keyword arguments, as JSON without braces.
func (b *bench) call(stream bool, kwargs string, args ...any) supervisor.Call {
	b.Helper()
	list, err := json.Marshal(append([]any{}, args...))
	if err != nil {
		b.Fatal(err)
	}
	b.calls++
	return supervisor.Call{ID: fmt.Sprintf("job-%d", b.calls), Attempt: 1, Args: list, Kwargs: json.RawMessage("{" + kwargs + "}"), Stream: stream}
}

// run makes a call and waits for its end.
func (b *bench) run(call supervisor.Call) (supervisor.Result, *sink, error) {
	b.Helper()
	s := newSink()
	res, err := b.Execute(b.ctx(), instance, call, s)
	return res, s, err
}

// must is run for a call that has to succeed with this result.
func (b *bench) must(call supervisor.Call, want string) *sink {
	b.Helper()
	res, s, err := b.run(call)
	if err != nil {
		b.Fatalf("%s: %v", call.Kwargs, err)
	}
	b.same(res.Payload, want)
	return s
}

func (b *bench) same(got []byte, want string) {
	b.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(got, &g); err != nil || !equal(g, w) {
		b.Fatalf("got %.300s, want %.300s (%v)", got, want, err)
	}
}

func equal(a, b any) bool {
	x, _ := json.Marshal(a) // came out of a decoder: cannot fail
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

// category is what an error of the plugin arrives as.
func (b *bench) category(want string) string {
	if b.target.Category == nil {
		return want
	}
	return b.target.Category(want)
}

// sink records what a call produced.
type sink struct {
	mu     sync.Mutex
	lines  []string // guarded by mu, as is the rest
	logs   []supervisor.LogRecord
	phases []supervisor.CancelMode
	bad    string // a chunk that came out of order

	progress chan supervisor.Progress
	chunk    chan uint64 // numbers, as long as there is room
}

func newSink() *sink {
	return &sink{progress: make(chan supervisor.Progress, 64), chunk: make(chan uint64, 64)}
}

func (s *sink) Chunk(n uint64, payload []byte) {
	s.mu.Lock()
	s.lines = append(s.lines, string(payload))
	if n != uint64(len(s.lines)) {
		s.bad = fmt.Sprintf("chunk %d came as number %d", n, len(s.lines))
	}
	s.mu.Unlock()
	select {
	case s.chunk <- n:
	default:
	}
}

func (s *sink) Progress(fraction float64, message string) {
	select {
	case s.progress <- supervisor.Progress{Fraction: fraction, Message: message}:
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

func (s *sink) seen() (lines []string, phases []supervisor.CancelMode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.lines...), append([]supervisor.CancelMode{}, s.phases...)
}
