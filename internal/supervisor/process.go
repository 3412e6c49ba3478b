package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/isolation"
)

// stderrTail is how many lines of stderr an error carries.
const stderrTail = 20

// process is one generation of a worker: all that exists because it was
// started. Fields are set before the loop learns of it, but for those named.
type process struct {
	gen     int
	spec    Spec
	devices []string // as placed; never changed
	tier    string
	sb      isolation.Sandbox
	ch      Channel
	conn    Conn
	report  []IsolationFact // never changed after the start: readers share it
	log     *WorkerLog
	logFrom uint64 // sequence of the log before the start
	started time.Time
	pipes   []*os.File
	heard   atomic.Int64 // time of the last sign of life, unix nanoseconds

	pumps   sync.WaitGroup
	waits   sync.WaitGroup // the goroutines that watch it
	exited  chan struct{}  // closed when the leader was reaped; status is set then
	status  isolation.ExitStatus
	callErr *CallError // what the worker answered to hello; set before waits are done

	gone chan struct{} // closed by the loop when the tree is empty; exit and tail are set then
	exit Exit
	tail []string

	noted []string // owned by the loop: another placement that was told

	stuck     chan struct{} // closed when the tree turned out to survive SIGKILL
	stuckOnce sync.Once

	sampleMu sync.Mutex
	usage    isolation.Usage // guarded by sampleMu
	cpu      float64         // guarded by sampleMu; percent between the last two samples
}

func (p *process) hear() { p.heard.Store(time.Now().UnixNano()) }

func (p *process) silence() time.Duration { return time.Since(time.Unix(0, p.heard.Load())) }

// spawn makes everything up to the open connection. What it made is undone when
// a step fails.
func (w *worker) spawn(ctx context.Context, gen int) (*process, *StartError) {
	fail := func(step string, err error) *StartError {
		return &StartError{Instance: w.name, Step: step, Cause: err}
	}
	devices := w.s.placement(w.name)
	spec, err := w.s.o.Catalog.Spec(ctx, w.name, devices)
	if err != nil {
		return nil, fail("spec", err)
	}
	if err := checkSpec(&spec); err != nil {
		return nil, fail("spec", err)
	}
	transport := w.s.transports[spec.Transport]
	if transport == nil {
		return nil, fail("spec", fmt.Errorf("no transport %q", spec.Transport))
	}
	tier, err := w.s.tier(ctx, spec.Isolation)
	if err != nil {
		return nil, fail("isolation", err)
	}
	sb, err := tier.Prepare(ctx, isolation.Spec{
		Name:      fmt.Sprintf("%s.%d", w.name, gen),
		MemoryMax: spec.Limits.MemoryMax, PidsMax: spec.Limits.PidsMax,
		CPUWeight: spec.Limits.CPUWeight, CPUMax: spec.Limits.CPUMax, IOWeight: spec.Limits.IOWeight,
		NoFile: spec.Limits.NoFile, Nice: spec.Limits.Nice, View: spec.View,
	})
	if err != nil {
		return nil, fail("sandbox", err)
	}
	p := &process{
		gen: gen, spec: spec, devices: devices, tier: tier.Name(), sb: sb, log: w.log, logFrom: w.log.lastSeq(),
		started: time.Now(), exited: make(chan struct{}), gone: make(chan struct{}), stuck: make(chan struct{}),
	}
	p.hear()
	if p.ch, err = transport.Prepare(ctx); err != nil {
		return nil, fail("sandbox", errors.Join(err, sb.Close()))
	}
	if err := p.start(); err != nil {
		return nil, fail("spawn", errors.Join(err, p.undo(ctx, false)))
	}
	if missing := p.missing(); missing != nil {
		return nil, fail("isolation", errors.Join(missing, p.undo(ctx, true)))
	}
	// Not ctx: the connection lives as long as the process.
	p.conn, err = p.ch.Open(context.WithoutCancel(ctx), spec.Hello, func(e ConnEvent) { w.connEvent(p, e) })
	if err != nil {
		serr := fail("hello", errors.Join(err, p.undo(ctx, true)))
		serr.Stderr = p.log.stderrSince(p.logFrom, stderrTail)
		return nil, serr
	}
	return p, nil
}

func checkSpec(spec *Spec) error {
	if len(spec.Command) == 0 {
		return errors.New("no command")
	}
	if spec.Concurrency < 1 {
		spec.Concurrency = 1
	}
	for d, v := range map[*time.Duration]time.Duration{
		&spec.StartCap: 30 * time.Minute, &spec.StallTimeout: time.Minute, &spec.StopGrace: 5 * time.Second,
	} {
		if *d <= 0 {
			*d = v
		}
	}
	return nil
}

// start runs the program with its own pipes: an exec.Cmd with a Writer would
// wait for grandchildren that keep them open.
func (p *process) start() error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer outW.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outR.Close()
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer errW.Close()
	cmd := &exec.Cmd{
		Path: p.spec.Command[0], Args: p.spec.Command, Dir: p.spec.Dir,
		Env:    append(append([]string{}, p.spec.Env...), p.ch.Env()...),
		Stdout: outW, Stderr: errW, ExtraFiles: p.ch.Files(),
	}
	if err := p.sb.Start(cmd); err != nil {
		return errors.Join(err, outR.Close(), errR.Close())
	}
	for _, f := range p.sb.Report() {
		p.report = append(p.report, IsolationFact(f))
	}
	on := ""
	if len(p.devices) > 0 {
		on = " on " + strings.Join(p.devices, ", ")
	}
	p.log.note("started pid %d (generation %d, tier %s)%s", p.sb.PID(), p.gen, p.tier, on)
	p.pipes = []*os.File{outR, errR}
	for i, name := range []string{"stdout", "stderr"} {
		p.pumps.Add(1)
		go func() {
			defer p.pumps.Done()
			p.log.pump(p.pipes[i], name, p.hear)
		}()
	}
	return nil
}

// missing names the required mechanisms that are not in force.
func (p *process) missing() error {
	var errs []error
	for _, want := range p.spec.Isolation.Require {
		why := "tier " + p.tier + " does not have it"
		if l := p.spec.Limits; want == "memory" && l.MemoryMax == 0 || want == "pids" && l.PidsMax == 0 {
			why = "no such limit is set (limits of the manifest or the instance)"
		}
		if n := p.spec.View.Network; want == "net" && (n == "" || n == "host") {
			why = "the network wished for is the host's (isolation.network)"
		}
		held := false
		for _, f := range p.report {
			if f.Mechanism == want {
				held = f.InForce
				if f.Detail != "" {
					why = f.Detail
				}
			}
		}
		if !held {
			errs = append(errs, fmt.Errorf("required isolation %q is missing: %s", want, why))
		}
	}
	return errors.Join(errs...)
}

// undo removes a process that the loop never learned of.
func (p *process) undo(ctx context.Context, started bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var errs []error
	if started {
		errs = append(errs, p.sb.Kill(ctx))
		_, err := p.sb.Wait()
		errs = append(errs, err)
	}
	errs = append(errs, p.ch.Close())
	p.drain()
	return errors.Join(append(errs, p.sb.Close())...)
}

// drain lets the pumps read what is left. After the kill every writer is gone,
// unless somebody outside the tree was handed a pipe: then it is closed.
func (p *process) drain() {
	done := make(chan struct{})
	go func() {
		p.pumps.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
	for _, f := range p.pipes {
		f.Close()
	}
	<-done
}

// ending is why a process is being ended; the first one counts.
type ending struct {
	cause   string // for people and the journal
	step    string // of the start, where it had not become ready
	polite  bool   // shutdown message and SIGTERM before the kill
	byUs    bool   // we decided it; false: it ended by itself
	failure bool   // counts for back-off
	timeout bool   // a stall, the start's cap, or a frozen worker
}

// finish ends the process, whatever state it is in, and returns true when
// nothing of it is left. unkillable is told when the tree outlives killWait; it
// goes on trying until giveUp is closed, and then returns false.
func (p *process) finish(killWait time.Duration, unkillable func(error), giveUp <-chan struct{}) bool {
	for p.kill(killWait, unkillable) != nil {
		select {
		case <-giveUp:
			return false
		case <-time.After(2 * time.Second):
		}
	}
	<-p.exited
	p.drain()
	// The peer is gone, so the connection ends as soon as it has handed over what
	// was still in the socket.
	select {
	case <-p.conn.Done():
	case <-time.After(2 * time.Second):
	}
	p.conn.Close()
	p.waits.Wait()
	p.sample()
	p.ch.Close()
	if err := p.sb.Close(); err != nil {
		p.log.note("cannot remove the sandbox: %v", err)
	}
	return true
}

func (p *process) kill(wait time.Duration, unkillable func(error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	err := p.sb.Kill(ctx)
	if err != nil {
		// What survives SIGKILL is blocked in the kernel and does no work any more:
		// its calls are over, or a shutdown would wait for them for ever.
		p.stuckOnce.Do(func() { close(p.stuck) })
		p.conn.Close()
		unkillable(err)
	}
	return err
}

// persuade asks the worker to end by itself: the shutdown message, SIGTERM at
// half of the grace. It returns when the leader has ended or the grace is over.
func (p *process) persuade() {
	half := p.spec.StopGrace / 2
	ctx, cancel := context.WithTimeout(context.Background(), half)
	defer cancel()
	if err := p.conn.Shutdown(ctx); err == nil && p.waitExit(half) {
		return
	}
	if err := p.sb.Signal(syscall.SIGTERM); err != nil {
		p.log.note("%v", err)
	}
	p.waitExit(half)
}

func (p *process) waitExit(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.exited:
		return true
	case <-t.C:
		return false
	}
}

// classify says how the process ended, once, after its tree is gone.
func (p *process) classify(e ending, oomKilled func(int, time.Time) bool) Exit {
	x := Exit{Code: p.status.Code, At: time.Now()}
	if p.status.Signal != 0 {
		x.Signal = signalName(p.status.Signal)
	}
	p.sampleMu.Lock()
	oom := p.usage.OOMKills > 0
	p.sampleMu.Unlock()
	ours := e.byUs && (p.status.Signal == syscall.SIGKILL || p.status.Signal == syscall.SIGTERM || (p.status.Signal == 0 && p.status.Code != 0))
	switch {
	case oom:
		x.Kind = ExitOOMWorker
	case ours && e.timeout:
		x.Kind, x.Reason = ExitTimeout, e.cause
	case ours:
		x.Kind, x.Reason = ExitKilledByUs, e.cause
	case p.status.Signal == syscall.SIGKILL && oomKilled(p.sb.PID(), p.started):
		x.Kind = ExitOOMSystem
	case p.status.Signal != 0:
		x.Kind = ExitSignal
	case p.status.Code != 0:
		x.Kind = ExitError
	default:
		x.Kind = ExitOK
	}
	return x
}

// lost waits until it is known how the process ended, or that it cannot be
// ended, and returns the error for a call that it took with it.
func (p *process) lost(ctx context.Context, instance string) error {
	select {
	case <-p.gone:
		return &WorkerLostError{Instance: instance, Exit: p.exit, Stderr: p.tail}
	case <-p.stuck:
		return &WorkerLostError{Instance: instance, Exit: Exit{
			Kind: ExitKilledByUs, Reason: "its processes are blocked in the kernel and have not ended yet", At: time.Now(),
		}}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sample reads memory and CPU time of the tree.
func (p *process) sample() (isolation.Usage, float64) {
	p.sampleMu.Lock()
	defer p.sampleMu.Unlock()
	u, err := p.sb.Usage()
	if err != nil {
		return p.usage, p.cpu
	}
	if last := p.usage; !last.SampledAt.IsZero() {
		if span := u.SampledAt.Sub(last.SampledAt); span > 0 {
			p.cpu = max(0, 100*float64(u.CPUTime-last.CPUTime)/float64(span))
		}
	}
	u.OOMKills = max(u.OOMKills, p.usage.OOMKills)
	p.usage = u
	return p.usage, p.cpu
}

func (p *process) sampledAt() time.Time {
	p.sampleMu.Lock()
	defer p.sampleMu.Unlock()
	return p.usage.SampledAt
}
