package jobs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

// modelJob is what one job must be like.
type modelJob struct {
	id       jobs.ID
	priority int
	held     bool
	max      int
	attempt  int
	status   jobs.Status
	cancel   bool // asked for while running
	delayed  bool
	deps     []jobs.ID
	runAll   bool // runs whatever became of them
	pruned   bool
	run      *jobs.Run
}

// model drives a queue at random and knows what must come of it.
type model struct {
	*box
	rt   *rapid.T
	jobs []*modelJob // in order of submission
}

func (m *model) find(id jobs.ID) *modelJob {
	for _, j := range m.jobs {
		if j.id == id {
			return j
		}
	}
	return nil
}

func (m *model) pick(label string, ok func(*modelJob) bool) *modelJob {
	var fit []*modelJob
	for _, j := range m.jobs {
		if !j.pruned && ok(j) {
			fit = append(fit, j)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[rapid.IntRange(0, len(fit)-1).Draw(m.rt, label)]
}

func pending(j *modelJob) bool   { return j.status == jobs.Pending }
func running(j *modelJob) bool   { return j.status == jobs.Running }
func anyStatus(j *modelJob) bool { return true }

func (m *model) ready(j *modelJob) bool {
	if !pending(j) || j.held || j.delayed {
		return false
	}
	for _, d := range j.deps {
		if st := m.find(d).status; st != jobs.Completed && !(st.Final() && j.runAll) {
			return false
		}
	}
	return true
}

// end sets a final status and what follows from it for dependents.
func (m *model) end(j *modelJob, st jobs.Status) {
	j.status, j.run = st, nil
	if st == jobs.Completed {
		return
	}
	for _, d := range m.jobs {
		if pending(d) && !d.runAll && slices.Contains(d.deps, j.id) {
			m.end(d, jobs.Cancelled)
		}
	}
}

func (m *model) submitSome() {
	var subs []jobs.Submission
	for range rapid.IntRange(1, 3).Draw(m.rt, "batch") {
		j := &modelJob{id: jobs.ID(fmt.Sprint("j", len(m.jobs))), priority: rapid.IntRange(-1, 1).Draw(m.rt, "priority"),
			held: rapid.IntRange(0, 5).Draw(m.rt, "held") == 0, max: rapid.IntRange(1, 3).Draw(m.rt, "max"), status: jobs.Pending}
		j.runAll = rapid.Bool().Draw(m.rt, "run all")
		for range max(0, rapid.IntRange(-3, 3).Draw(m.rt, "depends")) {
			dep := m.pick("dep", anyStatus)
			if dep == nil || slices.Contains(j.deps, dep.id) {
				continue
			}
			j.deps = append(j.deps, dep.id)
			if dep.status.Final() && dep.status != jobs.Completed && !j.runAll {
				defer m.end(j, jobs.Cancelled)
			}
		}
		m.jobs = append(m.jobs, j)
		subs = append(subs, jobs.Submission{ID: j.id, Submitter: "ann", Spec: jobs.Spec{Instance: fmt.Sprint("i", len(m.jobs)%2),
			Priority: j.priority, Held: j.held, MaxAttempts: j.max, DependsOn: j.deps, RunOnDepFail: j.runAll}})
	}
	out, err := m.Submit(m.ctx(), subs)
	require.NoError(m.rt, err)
	for _, o := range out {
		require.True(m.rt, o.Created)
	}
}

func (m *model) admitOne() *modelJob {
	j := m.pick("admit", m.ready)
	if j == nil {
		return nil
	}
	r, err := m.Admit(m.ctx(), j.id, "w")
	require.NoError(m.rt, err)
	j.run, j.status, j.cancel = r, jobs.Running, false
	j.attempt++
	return j
}

func (m *model) finishOne() {
	j := m.pick("finish", running)
	if j == nil {
		return
	}
	out := rapid.SampledFrom([]jobs.Outcome{
		done,
		{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "x"}},
		{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Transient, Message: "x", Retriable: true}},
		{Status: jobs.Pending, Error: &jobs.Error{Category: jobs.Interrupted, Message: "x"}},
		{Status: jobs.Pending, Unspent: true},
		{Status: jobs.Cancelled},
	}).Draw(m.rt, "outcome")
	again := out.Status == jobs.Pending || out.Error != nil && out.Error.Retriable
	_, err := j.run.Finish(m.ctx(), out)
	require.NoError(m.rt, err)
	switch {
	case out.Unspent && !j.cancel:
		j.attempt--
		j.status, j.run = jobs.Pending, nil
	case again && !j.cancel && j.attempt < j.max:
		j.status, j.run = jobs.Pending, nil
		j.delayed = out.Status == jobs.Failed
	case out.Status == jobs.Pending && j.cancel:
		m.end(j, jobs.Cancelled)
	case out.Status == jobs.Pending:
		m.end(j, jobs.Failed)
	default:
		m.end(j, out.Status)
	}
}

func (m *model) cancelOne() {
	if j := m.pick("cancel", anyStatus); j != nil {
		_, err := m.Cancel(m.ctx(), j.id, "ann", "")
		require.NoError(m.rt, err)
		switch j.status {
		case jobs.Pending:
			m.end(j, jobs.Cancelled)
		case jobs.Running:
			j.cancel = true
		}
	}
}

func (m *model) editOne() {
	j := m.pick("edit", pending)
	if j == nil {
		return
	}
	var err error
	switch rapid.IntRange(0, 2).Draw(m.rt, "edit kind") {
	case 0:
		j.priority = rapid.IntRange(-2, 2).Draw(m.rt, "new priority")
		_, err = m.Patch(m.ctx(), j.id, jobs.Patch{Priority: &j.priority})
	case 1:
		j.held = true
		_, err = m.Hold(m.ctx(), j.id)
	case 2:
		j.held = false
		_, err = m.Release(m.ctx(), j.id)
	}
	require.NoError(m.rt, err)
}

// prune lets retention do its worst: what a job that is not final depends on stays.
func (m *model) prune() {
	m.advance(time.Millisecond)
	require.NoError(m.rt, m.Prune(m.ctx()))
	for _, j := range m.jobs {
		if j.pruned {
			continue
		}
		if _, err := m.Get(m.ctx(), j.id); err != nil {
			require.ErrorIs(m.rt, err, jobs.ErrNotFound)
			require.True(m.rt, j.status.Final(), "%s", j.id)
			j.pruned = true
		}
	}
	for _, j := range m.jobs {
		if !j.status.Final() {
			for _, d := range j.deps {
				require.False(m.rt, m.find(d).pruned, "%s needs %s", j.id, d)
			}
		}
	}
}

// drain lets everything end: nothing waits for ever.
func (m *model) drain() {
	for m.pick("left", func(j *modelJob) bool { return !j.status.Final() }) != nil {
		m.passTime()
		for _, j := range m.jobs {
			if pending(j) && j.held {
				_, err := m.Release(m.ctx(), j.id)
				require.NoError(m.rt, err)
				j.held = false
			}
		}
		j := m.pick("next", running)
		if j == nil {
			j = m.admitOne()
		}
		require.NotNil(m.rt, j, "nothing runs and nothing may start")
		out := done
		if j.cancel {
			out = jobs.Outcome{Status: jobs.Cancelled}
		}
		_, err := j.run.Finish(m.ctx(), out)
		require.NoError(m.rt, err)
		m.end(j, out.Status)
	}
	m.check()
}

func (m *model) passTime() {
	m.advance(time.Minute)
	require.NoError(m.rt, m.Expire(m.ctx(), m.clock()))
	for _, j := range m.jobs {
		j.delayed = false
	}
}

// crash goes on from a copy of the files as they are at this moment.
func (m *model) crash() {
	var unsure *modelJob
	if rapid.Bool().Draw(m.rt, "amid a start") {
		unsure = m.admitOne()
	}
	for _, j := range m.jobs {
		if j.run != nil && j != unsure {
			require.NoError(m.rt, j.run.WaitStarted(m.ctx()))
		}
	}
	next, err := os.MkdirTemp(filepath.Dir(m.dir), "crash")
	require.NoError(m.rt, err)
	for _, name := range []string{"cjmd.db", "cjmd.db-wal"} {
		b, err := os.ReadFile(filepath.Join(m.dir, name))
		if !os.IsNotExist(err) {
			require.NoError(m.rt, err)
			require.NoError(m.rt, os.WriteFile(filepath.Join(next, name), b, 0o600))
		}
	}
	m.close()
	m.dir = next
	m.open()
	if unsure != nil && m.get(unsure.id).Attempt < unsure.attempt { // its start was not on disk: it never began
		unsure.attempt--
		unsure.status, unsure.run = jobs.Pending, nil
	}
	m.settleRunning()
}

func (m *model) settleRunning() {
	for _, j := range m.jobs {
		switch {
		case !running(j):
		case j.cancel:
			m.end(j, jobs.Cancelled)
		case j.attempt < j.max:
			j.status, j.run = jobs.Pending, nil
		default:
			m.end(j, jobs.Failed)
		}
	}
}

func (m *model) check() {
	_, err := m.store.Record(m.ctx()) // what a dependency's end set off is behind this
	require.NoError(m.rt, err)
	_, err = m.store.Record(m.ctx())
	require.NoError(m.rt, err)
	var want []*modelJob
	for _, j := range m.jobs {
		if j.pruned {
			continue
		}
		got := m.get(j.id)
		require.Equal(m.rt, j.status, got.Status, "%s", j.id)
		if !j.status.Final() {
			require.Equal(m.rt, j.attempt, got.Attempt, "%s", j.id)
		} else {
			stored, err := m.store.Get(m.ctx(), j.id)
			require.NoError(m.rt, err)
			require.Equal(m.rt, stored, got, "memory and store differ")
		}
		if m.ready(j) {
			want = append(want, j)
		}
	}
	slices.SortStableFunc(want, func(a, b *modelJob) int { return b.priority - a.priority })
	byGroup := map[string][]jobs.ID{}
	for _, j := range want {
		g := m.get(j.id).Spec.Instance
		byGroup[g] = append(byGroup[g], j.id)
	}
	got := map[string][]jobs.ID{}
	for _, g := range m.Groups(1000) {
		for _, r := range g.Ready {
			got[g.Instance] = append(got[g.Instance], r.ID)
		}
	}
	require.Equal(m.rt, byGroup, got)
}

// lifeOfAJob is the order of events.Kind in kinds.go.
var lifeOfAJob = regexp.MustCompile(`^submitted( (held|released|updated|blocked))*` +
	`( started( (phase|cancel_requested|cancel_phase))* requeued( (held|released|updated|blocked))*)*` +
	`( started( (phase|cancel_requested|cancel_phase))*)?( (completed|failed|cancelled))?$`)

func (m *model) checkJournal() {
	evs, err := m.store.EventsSince(context.Background(), 0, events.Filter{}, 1<<20)
	require.NoError(m.rt, err)
	for i, e := range evs {
		require.Equal(m.rt, events.Seq(i+1), e.Seq)
	}
	for _, j := range m.jobs {
		if j.pruned {
			continue
		}
		kinds := m.kinds(j.id)
		require.Regexp(m.rt, lifeOfAJob, kinds)
		last := kinds[strings.LastIndex(kinds, " ")+1:]
		require.Equal(m.rt, j.status.Final(), last == "completed" || last == "failed" || last == "cancelled", kinds)
	}
}

// Whatever is asked for in whatever order, with crashes in between: no job is
// lost, each ends once, what may start is what must, and the journal fits.
func TestQueue_Property(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		b := &box{t: t, dir: filepath.Join(t.TempDir(), "state"), now: time.Now()}
		b.opts.KeepJobs, b.opts.KeepAge = 1, time.Nanosecond
		b.opts.Backoff = func(int) time.Duration { return 30 * time.Second }
		m := &model{box: b, rt: rt}
		m.open()
		defer func() { m.close() }()
		steps := []func(){m.submitSome, m.submitSome, func() { m.admitOne() }, func() { m.admitOne() }, m.finishOne, m.finishOne,
			m.cancelOne, m.editOne, m.passTime, m.prune, m.crash, func() {
				m.close()
				m.open()
				m.settleRunning()
			}}
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			steps[rapid.IntRange(0, len(steps)-1).Draw(rt, "step")]()
			m.check()
		}
		m.drain()
		m.checkJournal()
	})
}
