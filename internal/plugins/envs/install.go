package envs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/cjmd/cjmd/internal/plugins"
)

// State is how far a task is.
type State string

// States. The last three are final.
const (
	Waiting       State = "waiting"
	Creating      State = "creating"
	Installing    State = "installing"
	Introspecting State = "introspecting"
	Finishing     State = "finishing"
	Done          State = "done"
	Kept          State = "kept"
	Failed        State = "failed"
)

// Update tells what happens to a task. Updates of one task come in order, those
// of different tasks from different goroutines.
type Update struct {
	Name   string
	State  State
	Detail string // the last line of the tool, or why it waits, or why it failed
	Bytes  int64  // what the finished environment takes
}

// Result is how one task ended.
type Result struct {
	Name     string
	Env      string
	Action   Action
	State    State
	Reason   string
	Plugin   string // name in the written manifest
	Manifest string // its file
	Dir      string // the environment; "" when it needs none
	Python   string
	Tool     string
	Bytes    int64
	Elapsed  time.Duration
	Log      string   // file with everything the tools said; "" when none ran
	Warnings []string // things that do not keep the plugin from running
	Packages []string // what changed since the last build
	Err      error
}

// Install does the tasks, several at a time, and returns their results in the
// order of the tasks. One that fails does not hold up the others. After ctx
// ends nothing new begins, what runs is stopped, and the results say so. Old
// builds stay until Clean: a daemon may start a worker from one until it has
// read the new manifest.
func (in *Installer) Install(ctx context.Context, tasks []Task, report func(Update)) []Result {
	results := make([]Result, len(tasks))
	slots := make(chan struct{}, in.o.Jobs)
	var wg sync.WaitGroup
	for i, t := range tasks {
		wg.Go(func() {
			if t.Action == Keep || t.Err != nil {
				results[i] = in.one(ctx, t, report)
				return
			}
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
			}
			results[i] = in.one(ctx, t, report)
		})
	}
	wg.Wait()
	return results
}

// one does one task.
func (in *Installer) one(ctx context.Context, t Task, report func(Update)) Result {
	start := in.o.Now()
	r := Result{Name: t.Entry.Name, Env: t.Entry.EnvName, Action: t.Action, Reason: t.Reason, Tool: t.Tool, Err: t.Err}
	state := Done
	switch {
	case r.Err != nil:
	case ctx.Err() != nil:
		r.Err = context.Cause(ctx)
	case t.Action == Keep:
		state = Kept
		in.describeKept(t, &r)
	default:
		j := &job{in: in, t: t, r: &r, report: report}
		r.Err = j.run(ctx)
	}
	r.State, r.Elapsed = state, in.o.Now().Sub(start)
	if r.Err != nil {
		r.State = Failed
	}
	last := Update{Name: r.Name, State: r.State, Detail: r.Reason, Bytes: r.Bytes}
	if r.Err != nil {
		last.Detail = r.Err.Error()
	}
	report(last)
	return r
}

func (in *Installer) describeKept(t Task, r *Result) {
	for _, m := range in.manifestsOf(t.Entry.EnvName) {
		r.Plugin, r.Manifest = m.Name, m.Path
	}
	if !t.Entry.needsEnv() {
		return
	}
	if dir, err := filepath.EvalSymlinks(filepath.Join(in.o.Envs, t.Entry.EnvName)); err == nil {
		r.Dir = dir
		if rec, err := plugins.ReadEnvRecord(dir); err == nil {
			r.Python, r.Bytes = rec.Python, rec.Bytes
		}
	}
}

// job is one task while it is done, by one goroutine.
type job struct {
	in     *Installer
	t      Task
	r      *Result
	report func(Update)
	log    *os.File
	steps  *steps
}

func (j *job) tell(s State, detail string) {
	j.report(Update{Name: j.t.Entry.Name, State: s, Detail: detail})
}

// run takes the environment's lock and does the task.
func (j *job) run(ctx context.Context) (err error) {
	e := j.t.Entry
	if err := os.MkdirAll(j.in.o.Envs, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of environments: %w", err)
	}
	unlock, err := lock(filepath.Join(j.in.o.Envs, "."+e.EnvName+".lock"))
	if err != nil {
		return fmt.Errorf("cannot work on environment %q: %w", e.EnvName, err)
	}
	defer unlock()
	if err := j.openLog(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fmt.Fprintf(j.log, "\n%v\n", err)
		}
		err = errors.Join(err, j.log.Close())
	}()
	var state State
	j.steps = &steps{env: toolEnv(j.in.o.Env), dir: j.in.o.Envs, log: j.log, line: func(l string) { j.tell(state, l) }}
	enter := func(s State) { state = s; j.tell(s, "") }
	if !e.needsEnv() {
		w, err := j.in.manifestFor(e, "", plugins.EnvRecord{}, answer{})
		if err != nil {
			return err
		}
		return j.register(w)
	}
	if j.t.Action == Regenerate {
		return j.regenerate(ctx, enter)
	}
	return j.build(ctx, enter)
}

// build makes the environment under a new name and puts it in force when all
// of it worked.
func (j *job) build(ctx context.Context, enter func(State)) (err error) {
	e := j.t.Entry
	j.in.dropUnfinished(e.EnvName)
	dir, err := newBuild(j.in.o.Envs, e.EnvName)
	if err != nil {
		return err
	}
	inForce := false
	defer func() {
		if err != nil && !inForce {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	start := j.in.o.Now()
	enter(Creating)
	if err := j.retried(ctx, func() error {
		if err := os.RemoveAll(dir); err != nil { // of an attempt that failed
			return fmt.Errorf("cannot remove an unfinished environment: %w", err)
		}
		return j.t.backend.Create(ctx, j.steps, dir, e)
	}); err != nil {
		return err
	}
	enter(Installing)
	if err := j.retried(ctx, func() error { return j.t.backend.Install(ctx, j.steps, dir, e) }); err != nil {
		return err
	}
	enter(Introspecting)
	rec, err := j.record(ctx, dir, start)
	if err != nil {
		return err
	}
	a, err := j.ask(ctx, dir)
	if err != nil {
		return err
	}
	enter(Finishing)
	rec.Bytes = diskUse(dir)
	w, err := j.prepare(dir, rec, a)
	if err != nil {
		return err
	}
	if err := j.putInForce(dir, rec); err != nil {
		return err
	}
	inForce = true
	return j.register(w)
}

func (j *job) retried(ctx context.Context, run func() error) error {
	return withRetries(ctx, j.in.o.Waits, func(attempt int, wait time.Duration) {
		msg := fmt.Sprintf("the network failed; attempt %d in %s", attempt+1, wait)
		fmt.Fprintln(j.log, msg)
		j.tell(Waiting, msg)
	}, run)
}

// regenerate writes the manifest of an environment that stays.
func (j *job) regenerate(ctx context.Context, enter func(State)) error {
	dir, err := filepath.EvalSymlinks(filepath.Join(j.in.o.Envs, j.t.Entry.EnvName))
	if err != nil {
		return fmt.Errorf("cannot find the environment: %w", err)
	}
	rec, err := plugins.ReadEnvRecord(dir)
	if err != nil {
		return err
	}
	enter(Introspecting)
	a, err := j.ask(ctx, dir)
	if err != nil {
		return err
	}
	enter(Finishing)
	// What is installed now is what the plugin is from now on.
	if rec.Lock, err = plugins.ReadLock(dir); err != nil {
		return err
	}
	rec.LockHash = plugins.LockHash(rec.Lock)
	w, err := j.prepare(dir, rec, a)
	if err != nil {
		return err
	}
	if err := writeRecord(dir, rec); err != nil {
		return err
	}
	return j.register(w)
}

// ask introspects what is a Python class; a program has nothing to be asked.
func (j *job) ask(ctx context.Context, dir string) (answer, error) {
	if m := j.t.Entry.Manifest; m != nil && len(m.Command) > 0 {
		return answer{}, nil
	}
	a, err := j.in.introspect(ctx, j.steps, j.t.Entry, pythonIn(dir))
	j.r.Warnings = append(j.r.Warnings, a.Warnings...)
	if m := j.t.Entry.Manifest; err == nil && m != nil && namesFields(a.Schema) && len(m.Schema) > 0 {
		if mine, herr := plugins.SchemaHash(m.Schema); herr == nil && mine != a.SchemaHash {
			j.r.Warnings = append(j.r.Warnings, "the config_schema of "+m.Path+" is not what get_config_schema() says; the manifest's counts")
		}
	}
	return a, err
}

// prepare makes the manifest and sees that its name is free, before anything is
// put in force.
func (j *job) prepare(dir string, rec plugins.EnvRecord, a answer) (written, error) {
	w, err := j.in.manifestFor(j.t.Entry, dir, rec, a)
	if err != nil {
		return w, err
	}
	j.r.Dir, j.r.Python, j.r.Bytes = dir, rec.Python, rec.Bytes
	return w, j.in.nameIsFree(j.t.Entry, w.name)
}

// register stores the manifest, instead of the one of an earlier name.
func (j *job) register(w written) (err error) {
	j.r.Plugin = w.name
	if j.r.Manifest, err = j.in.store(j.t.Entry, w); err != nil {
		return err
	}
	for _, m := range j.in.manifestsOf(j.t.Entry.EnvName) {
		if m.Name != w.name {
			if err := os.Remove(m.Path); err != nil {
				return fmt.Errorf("cannot remove the manifest of its old name: %w", err)
			}
		}
	}
	return nil
}

// record describes the new build.
func (j *job) record(ctx context.Context, dir string, start time.Time) (plugins.EnvRecord, error) {
	e := j.t.Entry
	facts, err := output(ctx, toolEnv(j.in.o.Env), pythonIn(dir), "-c",
		"import os, sys; print('%d.%d.%d' % sys.version_info[:3]); print(os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable))")
	if err != nil {
		return plugins.EnvRecord{}, fmt.Errorf("cannot use the environment's interpreter: %w", err)
	}
	lockLines, err := plugins.ReadLock(dir)
	if err != nil {
		return plugins.EnvRecord{}, err
	}
	rec := plugins.EnvRecord{
		Format: 1, Env: e.EnvName, Manager: j.t.backend.Name(), Tool: j.t.Tool, Installer: "cjm-ctl " + j.in.o.Version,
		Inputs: j.t.inputs, Lock: lockLines, LockHash: plugins.LockHash(lockLines), Source: e.source, Entry: e.Name,
		CreatedAt: start.UTC(), Seconds: j.in.o.Now().Sub(start).Seconds(),
	}
	rec.Python, rec.Base = cutLine(facts)
	if old, err := plugins.ReadEnvRecord(filepath.Join(j.in.o.Envs, e.EnvName)); err == nil {
		j.r.Packages = plugins.LockChanges(old.Lock, rec.Lock)
	}
	return rec, nil
}

// putInForce writes the record, which finishes the build, and turns the link.
func (j *job) putInForce(dir string, rec plugins.EnvRecord) error {
	if err := writeRecord(dir, rec); err != nil {
		return err
	}
	link := filepath.Join(j.in.o.Envs, j.t.Entry.EnvName)
	if info, err := os.Lstat(link); err == nil && info.Mode()&os.ModeSymlink == 0 {
		// Made by hand, and the user said --force. It has no record, so it is
		// removed with the next unfinished build.
		if err := os.Rename(link, buildName(j.in.o.Envs, j.t.Entry.EnvName)); err != nil {
			return fmt.Errorf("cannot put the old environment aside: %w", err)
		}
	}
	if err := renameio.Symlink(filepath.Base(dir), link); err != nil {
		return fmt.Errorf("cannot put the environment in force: %w", err)
	}
	return nil
}

func writeRecord(dir string, rec plugins.EnvRecord) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err == nil {
		err = renameio.WriteFile(filepath.Join(dir, plugins.EnvRecordFile), append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("cannot write the environment's record: %w", err)
	}
	return nil
}

func newBuild(envs, name string) (string, error) {
	dir := buildName(envs, name)
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("cannot make environment %q: %s is there already", name, dir)
	}
	return dir, nil
}

// buildName is a new directory beside the link. Its name is short: scripts hold
// it in their first line, which has a limit.
func buildName(envs, name string) string {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	return filepath.Join(envs, "."+name+"."+hex.EncodeToString(id[:]))
}

const keptLogs = 5 // per environment

// openLog begins the log of this installation and drops the oldest ones.
func (j *job) openLog() error {
	dir, name := j.in.o.Logs, j.t.Entry.EnvName
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of logs: %w", err)
	}
	old, _ := filepath.Glob(filepath.Join(dir, name+".2*.log")) // the pattern is sound
	slices.Sort(old)
	for len(old) >= keptLogs {
		if err := os.Remove(old[0]); err != nil {
			return fmt.Errorf("cannot remove an old log: %w", err)
		}
		old = old[1:]
	}
	j.r.Log = filepath.Join(dir, name+"."+j.in.o.Now().UTC().Format("20060102T150405.000")+".log")
	var err error
	if j.log, err = os.Create(j.r.Log); err != nil {
		return fmt.Errorf("cannot write the log: %w", err)
	}
	_, err = io.WriteString(j.log, fmt.Sprintf("%s: %s (%s) with %s\n", j.t.Entry.Name, j.t.Action, j.t.Reason, j.t.Tool))
	return err
}
