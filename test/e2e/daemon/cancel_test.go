package daemon

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

// phases are the cancel phases that a job's events tell of.
func phases(t *testing.T, events []client.Event) []string {
	var out []string
	for _, ev := range events {
		if ev.Kind == "job.cancel_phase" {
			out = append(out, Data(t, ev)["phase"].(string))
		}
	}
	return out
}

func cancelled(t *testing.T, s *Session, id string) wire.Job {
	t.Helper()
	job := s.Wait(id)
	if job.Status != wire.JobStatusCancelled || job.CancelReason != "a test wants it" || job.CancelRequestedAt.IsZero() {
		t.Errorf("the job is %s, reason %q, error %+v", job.Status, job.CancelReason, job.Error)
	}
	return job
}

func TestCancel_Pending(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	holder := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	s.Begun(holder.Id)
	queued := s.Submit(OpOf(lab, "echo"))
	held := OpOf(lab, "echo")
	held.Hold = true
	onHold := s.Submit(held)
	dependent := OpOf(lab, "echo")
	dependent.DependsOn = []string{holder.Id}
	blocked := s.Submit(dependent)
	for _, id := range []string{queued.Id, onHold.Id, blocked.Id} {
		if job := s.Cancel(id); job.Status != wire.JobStatusCancelled {
			t.Errorf("a pending job that was cancelled is %s", job.Status)
		}
		cancelled(t, s, id)
		if kinds := Kinds(s.Stream(JobPath(id, "events")).Rest()); slices.Contains(kinds, "job.started") {
			t.Errorf("its events are %v", kinds)
		}
	}
	gate.Open()
	s.IsCompleted(s.Wait(holder.Id))
	for _, id := range []string{queued.Id, onHold.Id, blocked.Id} {
		if n := s.D.RunsOf(t, id); n != 0 {
			t.Errorf("a job cancelled while pending ran %d times", n)
		}
	}
}

func TestCancel_Loading(t *testing.T) {
	s, lab := setup(t)
	slow := s.InstanceOf("slowimport", wire.InstanceRequest{Id: lab + "-slow"}) // stays: its worker may still be ending
	job := s.Submit(Job(slow, nil))
	s.Stream(JobPath(job.Id, "events")).Await(func(ev client.Event) bool {
		return ev.Kind == "job.phase" && Data(t, ev)["phase"] == "loading"
	})
	begin := time.Now()
	s.Cancel(job.Id)
	cancelled(t, s, job.Id)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("cancelling a job whose worker loads took %s", took)
	}
}

func TestCancel_Cooperative(t *testing.T) {
	s, lab := setup(t)
	var before, after int
	s.Completed(OpOf(lab, "pid"), &before)
	job := s.Submit(OpOf(lab, "hold", "gate", s.Gate().Path))
	s.Begun(job.Id)
	s.Cancel(job.Id)
	cancelled(t, s, job.Id)
	if again := s.Cancel(job.Id); again.Status != wire.JobStatusCancelled {
		t.Errorf("a second cancel finds the job %s", again.Status)
	}
	if got := phases(t, s.Stream(JobPath(job.Id, "events")).Rest()); !slices.Equal(got, []string{"cooperative"}) {
		t.Errorf("the phases are %v", got)
	}
	if s.Completed(OpOf(lab, "pid"), &after); before != after {
		t.Errorf("the worker %d did not survive a cancel that was obeyed: now %d", before, after)
	}
}

func TestCancel_KeepsThePartialResult(t *testing.T) {
	s, lab := setup(t)
	job := s.Submit(OpOf(lab, "partial"))
	s.Begun(job.Id)
	s.Cancel(job.Id)
	job = cancelled(t, s, job.Id)
	if job.Result == nil || !job.Result.Partial {
		t.Fatalf("the result is %+v", job.Result)
	}
	resp, err := s.API.GetResult(s.Ctx(), job.Id, nil)
	if err != nil || resp.Header.Get("X-Result-Partial") != "true" {
		t.Errorf("the partial result is not marked: %v, %v", resp.Header, err)
	}
	if got := Must[struct{ Partial bool }](t)(resp, err); !got.Partial {
		t.Errorf("the result is %+v", got)
	}
}

func TestCancel_StreamStopsAtItsNextChunk(t *testing.T) {
	s, lab := setup(t)
	req := OpOf(lab, "count", "to", 5, "at", 3, "gate", s.Gate().Path)
	req.Stream = true
	job := s.Submit(req)
	st := s.Stream(JobPath(job.Id, "stream"))
	st.AwaitKind("chunk")
	st.AwaitKind("chunk")
	s.Cancel(job.Id)
	if rest := Kinds(st.Rest()); !slices.Equal(rest, []string{"job.cancelled", "stream.end"}) {
		t.Errorf("after the cancel came %v", rest)
	}
	cancelled(t, s, job.Id)
}

func TestCancel_InterruptSparesTheWorker(t *testing.T) {
	s, lab := setup(t)
	var before, after int
	s.Completed(OpOf(lab, "pid"), &before)
	job := s.Submit(OpOf(lab, "deaf"))
	s.Begun(job.Id)
	s.Cancel(job.Id)
	cancelled(t, s, job.Id)
	if got := phases(t, s.Stream(JobPath(job.Id, "events")).Rest()); !slices.Equal(got, []string{"cooperative", "interrupt"}) {
		t.Errorf("the phases are %v", got)
	}
	if s.Completed(OpOf(lab, "pid"), &after); before != after {
		t.Errorf("the worker %d did not survive an interrupt: now %d", before, after)
	}
}

// A plugin that ignores cancel, interrupt and SIGTERM, with a grandchild in a
// session of its own: all of it ends, within the graces and a little more.
func TestFault_StubbornPluginIsKilledWithItsTree(t *testing.T) {
	s, lab := setup(t)
	pids := s.Gate().Path
	job := s.Submit(OpOf(lab, "stubborn", "pids", pids))
	s.Told(job.Id, "stubborn")
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	var tree []int
	if err := json.Unmarshal(b, &tree); err != nil || len(tree) != 2 {
		t.Fatalf("the tree is %s: %v", b, err)
	}
	begin := time.Now()
	s.Cancel(job.Id)
	job = cancelled(t, s, job.Id)
	took := time.Since(begin)
	for _, pid := range tree {
		if Alive(pid) {
			t.Errorf("process %d of the tree lives after the job is cancelled", pid)
		}
	}
	// Both graces are 300 ms in these daemons.
	if took < 600*time.Millisecond || took > 600*time.Millisecond+2*time.Second {
		t.Errorf("the kill took %s", took)
	}
	t.Logf("ended %s after both graces", took-600*time.Millisecond)
	if got := phases(t, s.Stream(JobPath(job.Id, "events")).Rest()); !slices.Equal(got, []string{"cooperative", "interrupt", "kill"}) {
		t.Errorf("the phases are %v", got)
	}
	var pid int
	s.Completed(OpOf(lab, "pid"), &pid)
	if pid == tree[0] {
		t.Error("the worker is still the same process")
	}
}

func TestCancel_GracesOfTheJobCount(t *testing.T) {
	s, lab := setup(t)
	req := OpOf(lab, "deaf")
	req.CancelGrace, req.InterruptGrace = "20ms", "20ms"
	job := s.Submit(req)
	s.Begun(job.Id)
	begin := time.Now()
	s.Cancel(job.Id)
	cancelled(t, s, job.Id)
	if took := time.Since(begin); took > 280*time.Millisecond {
		t.Logf("with graces of 20 ms the cancel took %s", took) // a slow machine alone is no fault
	}
	var at []float64
	for _, ev := range s.Stream(JobPath(job.Id, "events")).Rest() {
		if ev.Kind == "job.cancel_phase" {
			at = append(at, Data(t, ev)["after_ms"].(float64))
		}
	}
	if len(at) < 2 || at[1] < 20 || at[1] > 290 {
		t.Errorf("the phases came after %v ms, the second should come after 20", at)
	}
}

func TestCancel_UnknownJob(t *testing.T) {
	s, _ := setup(t)
	Problem(t, 404, "job_not_found")(s.API.CancelJob(s.Ctx(), "nobody", wire.CancelRequest{}))
}
