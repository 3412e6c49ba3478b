package execworker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/execspec"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

const (
	// termTime is what a program has between SIGTERM and SIGKILL; less than the
	// daemon's grace, after which the whole worker is killed.
	termTime = time.Second
	// drainTime is what output has to arrive after the program has ended. Its
	// group is dead by then: only what left the group can still hold a pipe.
	drainTime = time.Second
)

// job is one run of the program.
type job struct {
	w       *worker
	request string // id of the execute
	config  map[string]any
	params  struct {
		Job     string
		Attempt int
		Stream  bool
		Dir     string
		Task    string
		Method  string
	}
	dir       string // where the program runs
	temporary bool   // dir is gone after the job
	out       output

	mu        sync.Mutex
	pid       int         // guarded by mu; 0 before the start and after the end
	cancelled bool        // guarded by mu
	hard      *time.Timer // guarded by mu; from SIGTERM to SIGKILL
	refused   error       // guarded by mu; why this side ended the program
}

// failure is an error answer.
type failure struct {
	category  string
	message   string
	kind      string // type
	tail      string // traceback
	retriable bool
	fields    []string
}

func (f *failure) Error() string { return f.message }

func bad(format string, args ...any) *failure {
	return &failure{category: "user_input", message: fmt.Sprintf(format, args...)}
}

// run runs the program and answers the daemon.
func (j *job) run(payload []byte) {
	result, err := j.perform(payload)
	// The slot is free before the answer: the daemon may use it at once.
	j.w.mu.Lock()
	delete(j.w.jobs, j.params.Job)
	j.w.mu.Unlock()
	j.mu.Lock()
	cancelled := j.cancelled
	j.mu.Unlock()
	chunks := j.out.chunks
	switch {
	case err == nil:
		if len(result) > j.w.most {
			err = tooLong(j.w.most)
			break
		}
		answer := object{"chunks": chunks}
		if cancelled {
			answer["cancelled"] = true
		}
		_ = j.w.send(object{"id": j.request, "result": answer}, result)
		return
	case cancelled:
		_ = j.w.fail(j.request, wire.CodeCancelled, "the program was told to stop and did: "+err.message, object{"category": "cancelled", "type": err.kind})
		return
	}
	data := object{"category": err.category, "retriable": err.retriable}
	if err.kind != "" {
		data["type"] = err.kind
	}
	if err.tail != "" {
		data["traceback"] = cut(err.tail, maxTail)
	}
	if len(err.fields) > 0 {
		data["fields"] = err.fields
	}
	_ = j.w.fail(j.request, wire.CodePlugin, err.message, data)
}

func tooLong(most int) *failure {
	return &failure{category: "resource", message: fmt.Sprintf("the result is longer than the limit of %d bytes; leave a file and use result type path", most)}
}

// perform does everything but the answer.
func (j *job) perform(payload []byte) ([]byte, *failure) {
	if j.params.Task != "" || j.params.Method != "" {
		return nil, bad("a program has no tasks and no methods: leave both out")
	}
	values, err := j.values(payload)
	if err != nil {
		return nil, bad("%v", err)
	}
	undo, err := j.makeDir()
	if err != nil {
		return nil, &failure{category: "transient", retriable: true, message: err.Error()}
	}
	defer undo()
	values.Names["dir"] = j.dir
	plan, err := j.plan(values, payload)
	if err != nil {
		return nil, valueFailure(err)
	}
	return j.start(plan)
}

// values decodes what the job was given.
func (j *job) values(payload []byte) (*execspec.Values, error) {
	var in struct {
		Args   []any
		Kwargs map[string]any
	}
	if j.w.program.ReadsJob {
		if err := decode(payload, &in); err != nil {
			return nil, fmt.Errorf("cannot read the arguments: %w", err)
		}
	}
	return &execspec.Values{Args: in.Args, Kwargs: in.Kwargs, Config: j.config, Names: map[string]string{
		"job": j.params.Job, "attempt": strconv.Itoa(j.params.Attempt), "manifest_dir": j.w.program.Spec.Here,
		"data": j.w.dirs["data"], "models": j.w.dirs["models"], "cache": j.w.dirs["cache"],
	}}, nil
}

func decode(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return d.Decode(into)
}

// makeDir gives the program a place: the job's directory, or one for the moment
// where there is none or a sandbox hides it.
func (j *job) makeDir() (undo func(), err error) {
	if j.params.Dir != "" {
		err := unix.Access(j.params.Dir, unix.W_OK|unix.X_OK)
		if err == nil {
			j.dir = j.params.Dir
			return func() {}, nil
		}
		j.w.notify("log", object{"job": j.params.Job, "level": "warning",
			"message": fmt.Sprintf("the job's directory cannot be used in this worker's sandbox (%v): the program runs in a temporary one, and the files that it leaves are lost", err)}, nil)
	}
	if j.dir, err = os.MkdirTemp("", "cjmd-job-"); err != nil {
		return nil, fmt.Errorf("cannot make a directory for the job: %w", err)
	}
	j.temporary = true
	return func() { _ = os.RemoveAll(j.dir) }, nil
}

// plan is one run, with everything filled in.
type plan struct {
	argv   []string
	stdin  func() (io.ReadCloser, error)
	result string // the result file, relative to the job's directory
	rules  []rule
}

func (j *job) plan(v *execspec.Values, payload []byte) (plan, error) {
	spec, p := j.w.program.Spec, j.w.program
	out := plan{argv: slices.Clone(spec.Command)}
	for _, a := range p.Args {
		list, err := a.Expand(v, spec.AllowOptions)
		if err != nil {
			return plan{}, err
		}
		out.argv = append(out.argv, list...)
	}
	if err := j.planStdin(&out, v, payload); err != nil {
		return plan{}, err
	}
	if p.Result != nil {
		name, err := p.Result.Text(v)
		if err != nil {
			return plan{}, err
		}
		if filepath.IsAbs(name) {
			if name, err = filepath.Rel(j.dir, name); err != nil {
				return plan{}, err
			}
		}
		if !filepath.IsLocal(name) {
			return plan{}, bad("the result file %q is not in the job's directory", name)
		}
		if spec.Result.Type == execspec.ResultPath && j.temporary {
			return plan{}, &failure{category: "fatal", message: "the job has no directory in which its result could stay"}
		}
		out.result = name
	}
	for _, r := range p.Progress {
		compiled := rule{Rule: r}
		if r.Total != nil {
			text, err := r.Total.Text(v)
			var missing *execspec.ValueError
			if err != nil && (!errors.As(err, &missing) || !missing.Missing) {
				return plan{}, err
			}
			compiled.total, _ = amount(text) // without a total there is progress of an unknown fraction
		}
		out.rules = append(out.rules, compiled)
	}
	return out, nil
}

func (j *job) planStdin(out *plan, v *execspec.Values, payload []byte) error {
	spec := j.w.program.Spec
	if spec.Stdin.JSON {
		out.stdin = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(payload)), nil }
		return nil
	}
	if j.w.program.Stdin == nil {
		return nil
	}
	text, err := j.w.program.Stdin.Text(v)
	if err != nil {
		return err
	}
	if spec.Stdin.File == "" {
		out.stdin = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
		return nil
	}
	if !filepath.IsAbs(text) {
		text = filepath.Join(j.dir, text)
	}
	out.stdin = func() (io.ReadCloser, error) { return openRegular(os.OpenFile(text, os.O_RDONLY|unix.O_NONBLOCK, 0)) }
	return nil
}

func valueFailure(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	out := bad("%v", err)
	var v *execspec.ValueError
	if errors.As(err, &v) {
		out.fields = []string{v.Name}
	}
	return out
}

// start runs the program to its end.
func (j *job) start(p plan) ([]byte, *failure) {
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Dir = j.dir
	cmd.Env = j.environment()
	// A group of its own, so that a signal reaches all of it and nothing else; and
	// it does not outlive this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	pipes, err := j.connect(cmd, p)
	if err != nil {
		return nil, valueFailure(err)
	}
	defer pipes.close()
	if err := j.launch(cmd); err != nil {
		pipes.closeTheirs()
		f := &failure{category: "fatal", message: "cannot run the program: " + err.Error()}
		if errors.Is(err, errCancelledBefore) {
			f.message = err.Error()
		} else if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
			f.category, f.retriable = "transient", true
		}
		return nil, f
	}
	pipes.closeTheirs()
	read := j.out.begin(j, p, pipes)
	_ = cmd.Wait() // how it ended is in ProcessState
	j.ended(cmd.Process.Pid)
	pipes.drain(read)
	j.out.meter.flush()
	return j.judge(cmd.ProcessState, p)
}

var errCancelledBefore = errors.New("cancelled before the program began")

// launch starts cmd unless a cancel was faster.
func (j *job) launch(cmd *exec.Cmd) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cancelled {
		return errCancelledBefore
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	j.pid = cmd.Process.Pid
	return nil
}

// ended clears away what the program left in its group.
func (j *job) ended(pid int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pid = 0
	if j.hard != nil {
		j.hard.Stop()
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
}

// cancel tells the program to stop: first as an impatient user would, then by
// SIGTERM, which becomes SIGKILL when it does not help either.
func (j *job) cancel(mode string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cancelled = true
	if j.pid == 0 {
		return
	}
	sig := unix.SIGINT
	if mode == "interrupt" || j.w.program.Spec.CancelSignal == "TERM" {
		sig = unix.SIGTERM
	}
	_ = unix.Kill(-j.pid, sig)
	if mode == "interrupt" && j.hard == nil {
		j.hard = time.AfterFunc(termTime, j.kill)
	}
}

// kill ends the program's group.
func (j *job) kill() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pid != 0 {
		_ = unix.Kill(-j.pid, unix.SIGKILL)
	}
}

// refuse ends a program whose output cannot be used.
func (j *job) refuse(err error) {
	j.mu.Lock()
	if j.refused == nil {
		j.refused = err
	}
	j.mu.Unlock()
	j.kill()
}

func (j *job) environment() []string {
	env := map[string]string{}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	maps.Copy(env, j.w.secrets)
	env["CJM_JOB_ID"], env["CJM_JOB_DIR"], env["CJM_JOB_ATTEMPT"] = j.params.Job, j.dir, strconv.Itoa(j.params.Attempt)
	env["CJM_JOB_STREAM"] = "0"
	if j.params.Stream {
		env["CJM_JOB_STREAM"] = "1"
	}
	delete(env, "CJM_WORKER_CHECK")
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// judge turns the end of the program into a result or an error.
func (j *job) judge(st *os.ProcessState, p plan) ([]byte, *failure) {
	j.mu.Lock()
	refused := j.refused
	j.mu.Unlock()
	if refused != nil {
		return nil, valueFailure(refused)
	}
	if !st.Success() {
		return nil, j.exitFailure(st)
	}
	if p.result != "" {
		return j.resultFile(p.result)
	}
	return j.out.result(j)
}

// exitFailure says what a bad exit means: the program's own word counts most,
// then the manifest's table.
func (j *job) exitFailure(st *os.ProcessState) *failure {
	tail := j.out.tail()
	ws, _ := st.Sys().(syscall.WaitStatus)
	f := &failure{category: "fatal", kind: fmt.Sprintf("exit %d", st.ExitCode()), tail: strings.Join(tail, "\n")}
	how := fmt.Sprintf("exit code %d", st.ExitCode())
	if ws.Signaled() {
		how = "killed by " + unix.SignalName(ws.Signal())
		f.kind = unix.SignalName(ws.Signal())
		// Somebody outside ended it, as the kernel does where memory is short. That
		// says nothing about the arguments.
		if ws.Signal() == unix.SIGKILL {
			f.category = "transient"
		}
	}
	f.message = how
	if n := len(tail); n > 0 {
		f.message = tail[n-1] + " (" + how + ")"
	}
	if c, ok := j.w.program.Exits[st.ExitCode()]; ok {
		f.category = c
	}
	f.retriable = retriable(f.category)
	j.out.said.apply(f)
	return f
}

func retriable(category string) bool {
	return category == "transient" || category == "resource" || category == "oom"
}
