package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func TestSubmit_IdempotencyKey(t *testing.T) {
	s, lab := setup(t)
	key := &wire.SubmitJobParams{IdempotencyKey: ptr("key of " + lab)}
	first := Must[wire.Job](t)(s.API.SubmitJob(s.Ctx(), key, OpOf(lab, "echo", "a", 1)))
	resp, err := s.API.SubmitJob(s.Ctx(), key, OpOf(lab, "echo", "a", 1))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the repeated submit is answered with %v, %v", resp, err)
	}
	if again := Must[wire.Job](t)(resp, err); again.Id != first.Id {
		t.Errorf("the repeated submit made %s beside %s", again.Id, first.Id)
	}
	Problem(t, 409, "key_reused")(s.API.SubmitJob(s.Ctx(), key, OpOf(lab, "echo", "a", 2)))
	s.Wait(first.Id)
	after := Must[wire.Job](t)(s.API.SubmitJob(s.Ctx(), key, OpOf(lab, "echo", "a", 1)))
	if after.Id != first.Id || !Final(after) || s.D.RunsOf(t, first.Id) != 1 {
		t.Errorf("repeated after its end the submit gives %s (%s), which ran %d times", after.Id, after.Status, s.D.RunsOf(t, first.Id))
	}
}

func TestSubmit_SameKeyAtOnceMakesOneJob(t *testing.T) {
	s, lab := setup(t)
	key := &wire.SubmitJobParams{IdempotencyKey: ptr("race of " + lab)}
	ids := make(chan string, 16)
	for range cap(ids) {
		go func() {
			job, err := client.Decode[wire.Job](s.API.SubmitJob(s.Ctx(), key, OpOf(lab, "echo")))
			if err != nil {
				ids <- err.Error()
				return
			}
			ids <- job.Id
		}()
	}
	got := map[string]bool{}
	for range cap(ids) {
		got[<-ids] = true
	}
	if len(got) != 1 {
		t.Errorf("the answers are %v", got)
	}
	for id := range got {
		s.Wait(id)
	}
}

func TestSubmit_PutUnderAnOwnID(t *testing.T) {
	s, lab := setup(t)
	id := "my-" + lab
	resp, err := s.API.PutJob(s.Ctx(), id, nil, OpOf(lab, "echo"))
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("PUT is answered with %v, %v", resp, err)
	}
	if job := Must[wire.Job](t)(resp, err); job.Id != id {
		t.Errorf("the job is %s", job.Id)
	}
	s.IsCompleted(s.Wait(id))
	resp, err = s.API.PutJob(s.Ctx(), id, nil, OpOf(lab, "echo"))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the repeated PUT is answered with %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	Problem(t, 409, "key_reused")(s.API.PutJob(s.Ctx(), id, nil, OpOf(lab, "pid")))
	if n := s.D.RunsOf(t, id); n != 1 {
		t.Errorf("the job ran %d times", n)
	}
	Problem(t, 422, "invalid_body")(s.Raw(http.MethodPut, "/v1/jobs/.hidden", `{"plugin":"lab"}`))
}

func TestSubmit_BatchIsAllOrNothing(t *testing.T) {
	s, lab := setup(t)
	item := func(n int) wire.BatchItem {
		return wire.BatchItem{Id: fmt.Sprintf("batch-%s-%d", lab, n), Plugin: lab, Kwargs: json.RawMessage(fmt.Sprintf(`{"op":"echo","n":%d}`, n))}
	}
	bad := item(2)
	bad.Plugin = "nobody"
	p := Problem(t, 422, "unknown_plugin")(s.API.SubmitBatch(s.Ctx(), wire.BatchRequest{Jobs: []wire.BatchItem{item(0), item(1), bad}}))
	if len(p.Errors) != 1 || p.Errors[0].Pointer != "/jobs/2/plugin" {
		t.Errorf("the problem points at %+v", p.Errors)
	}
	Problem(t, 404, "job_not_found")(s.API.GetJob(s.Ctx(), item(0).Id, nil))

	var items []wire.BatchItem
	for n := range 20 {
		items = append(items, item(n))
	}
	got := Must[wire.BatchAccepted](t)(s.API.SubmitBatch(s.Ctx(), wire.BatchRequest{Jobs: items}))
	for n, j := range got.Jobs {
		if j.Id != items[n].Id || !j.Created {
			t.Errorf("job %d of the batch is %+v", n, j)
		}
	}
	again := Must[wire.BatchAccepted](t)(s.API.SubmitBatch(s.Ctx(), wire.BatchRequest{Jobs: items}))
	if again.Jobs[7].Created {
		t.Error("the repeated batch created a job again")
	}
	for _, it := range items {
		s.IsCompleted(s.Wait(it.Id))
	}
	var order []string
	for _, r := range s.D.Runs(t) {
		if strings.HasPrefix(r.Job, "batch-"+lab) {
			order = append(order, r.Job)
		}
	}
	want := make([]string, 0, len(items))
	for _, it := range items {
		want = append(want, it.Id)
	}
	if !slices.Equal(order, want) {
		t.Errorf("the jobs of one batch ran in the order %v", order)
	}
}

func TestSubmit_DependenciesRunInOrder(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	first := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	req := OpOf("labs", "echo")
	req.DependsOn = []string{first.Id}
	second := s.Submit(req)
	if second = s.Get(second.Id); second.Phase != wire.JobPhaseBlocked || second.Block == nil || second.Block.Code != "dependency" || !slices.Contains(second.Block.Holders, first.Id) {
		t.Errorf("the dependent is %s: %+v", second.Phase, second.Block)
	}
	gate.Open()
	s.IsCompleted(s.Wait(second.Id))
	if first = s.Get(first.Id); s.Get(second.Id).StartedAt.Before(first.FinishedAt) {
		t.Error("the dependent started before what it depends on had ended")
	}

	failed := s.Submit(OpOf(lab, "fail"))
	req.DependsOn = []string{failed.Id}
	if job := s.Run(req); job.Status != wire.JobStatusCancelled || !strings.Contains(job.CancelReason, failed.Id) {
		t.Errorf("the dependent of a failed job is %s, %q", job.Status, job.CancelReason)
	}
	req.OnDependencyFailure = wire.JobRequestOnDependencyFailureRun
	s.Completed(req, nil)
}

func TestQueue_PriorityAndReorder(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	holder := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	s.Begun(holder.Id)
	submit := func(priority int) string {
		req := OpOf(lab, "echo")
		req.Priority = priority
		return s.Submit(req).Id
	}
	low, mid1, mid2, high, late := submit(-5), submit(0), submit(0), submit(10), submit(0)
	patched := Must[wire.Job](t)(s.API.PatchJob(s.Ctx(), mid2, nil, wire.JobPatch{Priority: ptr(20)}))
	if patched.Priority != 20 {
		t.Errorf("the priority is %d", patched.Priority)
	}
	Must[wire.Job](t)(s.API.PatchJob(s.Ctx(), mid2, nil, wire.JobPatch{Priority: ptr(0)})) // back in its old place

	order := make([]string, 0, 5)
	for _, j := range Must[wire.Queue](t)(s.API.GetQueue(s.Ctx(), &wire.GetQueueParams{Limit: ptr(500)})).Pending {
		if j.Plugin == lab {
			order = append(order, j.Id)
			if j.Position < 1 {
				t.Errorf("a pending job is in position %d", j.Position)
			}
		}
	}
	want := []string{high, mid1, mid2, late, low}
	if !slices.Equal(order, want) {
		t.Errorf("the queue tells the order %v, want %v", order, want)
	}
	gate.Open()
	s.Wait(low)
	order = order[:0]
	for _, r := range s.D.Runs(t) {
		if slices.Contains(want, r.Job) {
			order = append(order, r.Job)
		}
	}
	if !slices.Equal(order, want) {
		t.Errorf("they ran in the order %v, want %v", order, want)
	}
}

func TestQueue_PatchKnowsRevisions(t *testing.T) {
	s, lab := setup(t)
	req := OpOf(lab, "echo")
	req.Hold = true
	job := s.Submit(req)
	resp, err := s.API.GetJob(s.Ctx(), job.Id, nil)
	if err != nil {
		t.Fatal(err)
	}
	etag := resp.Header.Get("ETag")
	_ = resp.Body.Close()
	Must[wire.Job](t)(s.API.PatchJob(s.Ctx(), job.Id, &wire.PatchJobParams{IfMatch: &etag}, wire.JobPatch{Labels: wire.Labels{"colour": "green"}}))
	Problem(t, 412, "revision_mismatch")(s.API.PatchJob(s.Ctx(), job.Id, &wire.PatchJobParams{IfMatch: &etag}, wire.JobPatch{Priority: ptr(1)}))
	Must[wire.Job](t)(s.API.PatchJob(s.Ctx(), job.Id, nil, wire.JobPatch{Priority: ptr(1)}))
	page := Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), &wire.ListJobsParams{Label: []string{"colour=green"}, Plugin: &lab}))
	if len(page.Jobs) != 1 || page.Jobs[0].Id != job.Id {
		t.Errorf("the job is not found by its label: %+v", page.Jobs)
	}
	s.Cancel(job.Id)
	Problem(t, 409, "state_conflict")(s.API.PatchJob(s.Ctx(), job.Id, nil, wire.JobPatch{Priority: ptr(2)}))
}

func TestQueue_HoldAndRelease(t *testing.T) {
	s, lab := setup(t)
	req := OpOf(lab, "echo")
	req.Hold = true
	held := s.Submit(req)
	after := s.Completed(OpOf(lab, "echo"), nil)
	if held = s.Get(held.Id); held.Status != wire.JobStatusPending || held.Phase != wire.JobPhaseHeld {
		t.Errorf("the held job is %s (%s)", held.Status, held.Phase)
	}
	Must[wire.Job](t)(s.API.ReleaseJob(s.Ctx(), held.Id))
	s.IsCompleted(s.Wait(held.Id))

	gate := s.Gate()
	holder := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	s.Begun(holder.Id)
	waiting := s.Submit(OpOf(lab, "echo"))
	if j := Must[wire.Job](t)(s.API.HoldJob(s.Ctx(), waiting.Id)); j.Phase != wire.JobPhaseHeld {
		t.Errorf("a job put on hold is %s", j.Phase)
	}
	Problem(t, 409, "state_conflict")(s.API.HoldJob(s.Ctx(), holder.Id))
	Problem(t, 409, "state_conflict")(s.API.HoldJob(s.Ctx(), after.Id))
	gate.Open()
	s.Wait(holder.Id)
	if j := s.Get(waiting.Id); j.Phase != wire.JobPhaseHeld {
		t.Errorf("a held job did not stay: %s (%s)", j.Status, j.Phase)
	}
	s.Cancel(waiting.Id)
}

func TestQueue_PauseOfOnePlugin(t *testing.T) {
	s, lab := setup(t)
	c := Must[wire.Controls](t)(s.API.PauseQueue(s.Ctx(), &wire.PauseQueueParams{Plugin: &lab}))
	if c.Plugins[lab] != wire.QueueModePaused || c.Mode != wire.QueueModeRunning {
		t.Errorf("the controls are %+v", c)
	}
	job := s.Submit(OpOf(lab, "echo"))
	s.Completed(OpOf("labs", "echo"), nil)
	if job = s.Get(job.Id); job.Status != wire.JobStatusPending || job.Block == nil || job.Block.Code != "paused" {
		t.Errorf("a job of a paused plugin is %s, %+v", job.Status, job.Block)
	}
	ex := Must[wire.Explanation](t)(s.API.ExplainJob(s.Ctx(), job.Id))
	if !strings.Contains(ex.Sentence, "paused") {
		t.Errorf("the explanation is %q", ex.Sentence)
	}
	Must[wire.Controls](t)(s.API.ResumeQueue(s.Ctx(), &wire.ResumeQueueParams{Plugin: &lab}))
	s.IsCompleted(s.Wait(job.Id))
	Problem(t, 404, "plugin_not_found")(s.API.PauseQueue(s.Ctx(), &wire.PauseQueueParams{Plugin: ptr("nobody")}))
}

func TestQueue_DrainFinishesTheOldAndRefusesTheNew(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	running := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	waiting := s.Submit(OpOf(lab, "echo"))
	s.Begun(running.Id)
	Must[wire.Controls](t)(s.API.DrainQueue(s.Ctx(), &wire.DrainQueueParams{Plugin: &lab}))
	p := Problem(t, 503, "draining")(s.API.SubmitJob(s.Ctx(), nil, OpOf(lab, "echo")))
	if p.RetryAfter <= 0 {
		t.Error("the refusal does not say when to try again")
	}
	gate.Open()
	s.IsCompleted(s.Wait(running.Id))
	s.IsCompleted(s.Wait(waiting.Id))
	Must[wire.Controls](t)(s.API.ResumeQueue(s.Ctx(), &wire.ResumeQueueParams{Plugin: &lab}))
	s.Completed(OpOf(lab, "echo"), nil)
}

func TestQueue_WholePauseSurvivesARestart(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	Must[wire.Controls](t)(s.API.PauseQueue(s.Ctx(), nil))
	job := s.Submit(Op("echo"))
	d.Restart(t)
	if got := s.Get(job.Id); got.Status != wire.JobStatusPending {
		t.Errorf("after a restart of a paused queue the job is %s", got.Status)
	}
	Must[wire.Controls](t)(s.API.DrainQueue(s.Ctx(), nil))
	Problem(t, 503, "draining")(s.API.SubmitJob(s.Ctx(), nil, Op("echo")))
	s.IsCompleted(s.Wait(job.Id))
	Must[wire.Controls](t)(s.API.ResumeQueue(s.Ctx(), nil))
	s.Completed(Op("echo"), nil)
}

func TestList_PagesWithoutGapOrRepetition(t *testing.T) {
	s, lab := setup(t)
	want := map[string]bool{}
	var items []wire.BatchItem
	for range 23 {
		items = append(items, wire.BatchItem{Plugin: lab, Hold: true, Kwargs: json.RawMessage(`{"op":"echo"}`)})
	}
	for _, j := range Must[wire.BatchAccepted](t)(s.API.SubmitBatch(s.Ctx(), wire.BatchRequest{Jobs: items})).Jobs {
		want[j.Id] = true
	}
	params := &wire.ListJobsParams{Plugin: &lab, Limit: ptr(5), Status: []wire.JobStatus{wire.JobStatusPending}}
	got := map[string]bool{}
	var newest time.Time
	for pages := 0; ; pages++ {
		page := Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), params))
		if page.ReadAt == 0 {
			t.Error("a page does not say at which number of the journal it was read")
		}
		for _, j := range page.Jobs {
			if got[j.Id] {
				t.Errorf("%s is on two pages", j.Id)
			}
			got[j.Id] = true
			if !newest.IsZero() && j.CreatedAt.After(newest) {
				t.Error("the list is not newest first")
			}
			newest = j.CreatedAt
		}
		if page.Next == "" {
			break
		}
		if params.Cursor = &page.Next; pages == 0 { // jobs that come meanwhile do not shift the pages
			s.Cancel(s.Submit(OpOf(lab, "echo")).Id)
		}
	}
	for id := range want {
		if !got[id] {
			t.Errorf("%s is on no page", id)
		}
		s.Cancel(id)
	}
	if len(got) != len(want) {
		t.Errorf("%d jobs are listed, want %d", len(got), len(want))
	}
}

func TestList_ThenFollowHasNoGap(t *testing.T) {
	s, lab := setup(t)
	page := Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), &wire.ListJobsParams{Plugin: &lab}))
	job := s.Completed(OpOf(lab, "echo"), nil)
	st := s.Stream(fmt.Sprintf("/v1/events?after=%d&job=%s", page.ReadAt, job.Id))
	st.AwaitKind("job.completed")
	if kinds := Kinds(st.Seen); kinds[0] != "job.submitted" {
		t.Errorf("what follows the list is %v", kinds)
	}
}
