package daemon

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func TestJob_UnaryLife(t *testing.T) {
	s, lab := setup(t)
	resp, err := s.API.SubmitJob(s.Ctx(), nil, OpOf(lab, "echo", "greeting", "grüß dich"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("a submit is answered with %s", resp.Status)
	}
	location := resp.Header.Get("Location")
	job := Must[wire.Job](t)(resp, nil)
	if location != JobPath(job.Id) {
		t.Errorf("Location is %q", location)
	}
	if job.Status != wire.JobStatusPending && job.Status != wire.JobStatusRunning {
		t.Errorf("a new job is %s", job.Status)
	}

	job = s.Wait(job.Id)
	s.IsCompleted(job)
	if job.Attempt != 1 || job.StartedAt.IsZero() || job.FinishedAt.Before(job.StartedAt) || job.Submitter != "uid:0" && !strings.HasPrefix(job.Submitter, "uid:") {
		t.Errorf("the job's account of itself is %+v", job)
	}
	if job.Result == nil || job.Result.Partial || job.Result.ContentType != "application/json" || job.Result.Sha256 == "" {
		t.Errorf("the result is described as %+v", job.Result)
	}
	var got struct{ Kwargs map[string]string }
	s.Result(job.Id, &got)
	if got.Kwargs["greeting"] != "grüß dich" {
		t.Errorf("the result is %v", got)
	}
	if n := s.D.RunsOf(t, job.Id); n != 1 {
		t.Errorf("the job ran %d times", n)
	}
	want := []string{"job.submitted", "job.started", "progress", "job.completed", "stream.end"}
	kinds := Kinds(s.Stream(JobPath(job.Id, "events")).Rest())
	if !slices.Contains(kinds, "job.phase") {
		t.Errorf("no phase is told: %v", kinds)
	}
	// Phases go to the disk beside the work; what the worker says may come first.
	kinds = slices.DeleteFunc(kinds, func(k string) bool { return k == "job.blocked" || k == "job.phase" })
	if !slices.Equal(kinds, want) {
		t.Errorf("its events are %v, want %v", kinds, want)
	}
}

func TestJob_WaitHoldsTheAnswer(t *testing.T) {
	s, lab := setup(t)
	job := Must[wire.Job](t)(s.API.SubmitJob(s.Ctx(), &wire.SubmitJobParams{Wait: ptr("30s")}, OpOf(lab, "echo")))
	s.IsCompleted(job)
	job = Must[wire.Job](t)(s.API.SubmitJob(s.Ctx(), &wire.SubmitJobParams{Prefer: ptr("wait=30")}, OpOf(lab, "echo")))
	s.IsCompleted(job)

	gate := s.Gate()
	job = Must[wire.Job](t)(s.API.SubmitJob(s.Ctx(), &wire.SubmitJobParams{Wait: ptr("50ms")}, OpOf(lab, "hold", "gate", gate.Path)))
	if Final(job) {
		t.Errorf("a job that waits is %s", job.Status)
	}
	got := Must[wire.Job](t)(s.API.GetJob(s.Ctx(), job.Id, &wire.GetJobParams{Wait: ptr("50ms")}))
	if Final(got) {
		t.Errorf("a job that waits is %s", got.Status)
	}
	gate.Open()
	s.IsCompleted(s.Wait(job.Id))
}

func TestJob_StreamTellsChunksInOrder(t *testing.T) {
	s, lab := setup(t)
	req := OpOf(lab, "count", "to", 50)
	req.Stream = true
	job := s.Submit(req)
	var chunks []string
	for _, ev := range s.Stream(JobPath(job.Id, "stream")).Rest() {
		if ev.Kind == "chunk" {
			chunks = append(chunks, string(ev.Data))
		}
	}
	if len(chunks) != 50 || chunks[0] != "1" || chunks[49] != "50" || !slices.IsSortedFunc(chunks, func(a, b string) int { return len(a) - len(b) }) {
		t.Errorf("the chunks are %v", chunks)
	}
	s.IsCompleted(s.Get(job.Id))
	var result struct{ Chunks int }
	s.Result(job.Id, &result)
	if result.Chunks != 50 {
		t.Errorf("the result counts %d chunks", result.Chunks)
	}
}

func TestJob_ChunksArriveWhileTheyArise(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	req := OpOf(lab, "count", "to", 2, "at", 2, "gate", gate.Path)
	req.Stream = true
	job := s.Submit(req)
	st := s.Stream(JobPath(job.Id, "stream"))
	if ev := st.AwaitKind("chunk"); string(ev.Data) != "1" {
		t.Errorf("the first chunk is %s", ev.Data)
	}
	if j := s.Get(job.Id); Final(j) {
		t.Errorf("the job is %s before its second chunk", j.Status)
	}
	gate.Open()
	if ev := st.AwaitKind("chunk"); string(ev.Data) != "2" {
		t.Errorf("the second chunk is %s", ev.Data)
	}
	st.Rest()
}

func TestJob_Execute(t *testing.T) {
	s, lab := setup(t)
	job := Must[wire.Job](t)(s.API.Execute(s.Ctx(), lab, nil, wire.ExecuteRequest{Kwargs: json.RawMessage(`{"op":"echo","a":1}`)}))
	s.IsCompleted(job)
	if job.Result == nil || !strings.Contains(string(job.Result.Value), `"a":1`) {
		t.Errorf("execute answers with the result %+v", job.Result)
	}
	job = Must[wire.Job](t)(s.API.Execute(s.Ctx(), lab, nil, wire.ExecuteRequest{Kwargs: json.RawMessage(`{"op":"fail"}`)}))
	s.IsFailed(job, wire.JobErrorCategoryFatal)
	Problem(t, 404, "plugin_not_found")(s.API.Execute(s.Ctx(), "nobody", nil, wire.ExecuteRequest{}))
}

func TestJob_ExecuteStream(t *testing.T) {
	s, lab := setup(t)
	st := s.ExecuteStream(lab, nil, wire.ExecuteRequest{Kwargs: json.RawMessage(`{"to":3}`)})
	location := st.Header.Get("Location")
	if !strings.HasPrefix(location, "/v1/jobs/") {
		t.Fatalf("Location is %q", location)
	}
	if kinds := Kinds(st.Rest()); !slices.Equal(kinds, []string{"job.started", "chunk", "chunk", "chunk", "job.completed", "stream.end"}) {
		t.Errorf("the stream is %v", kinds)
	}
	s.IsCompleted(s.Get(strings.TrimPrefix(location, "/v1/jobs/")))
}

func TestJob_ExecuteStreamDisconnect(t *testing.T) {
	for _, c := range []struct {
		name   string
		params *wire.ExecuteStreamParams
		want   wire.JobStatus
	}{
		{"cancel is the default", nil, wire.JobStatusCancelled},
		{"cancel", &wire.ExecuteStreamParams{OnDisconnect: ptr(wire.ExecuteStreamParamsOnDisconnectCancel)}, wire.JobStatusCancelled},
		{"keep", &wire.ExecuteStreamParams{OnDisconnect: ptr(wire.ExecuteStreamParamsOnDisconnectKeep)}, wire.JobStatusCompleted},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, lab := setup(t)
			gate := s.Gate()
			kwargs, _ := json.Marshal(map[string]any{"to": 3, "at": 2, "gate": gate.Path})
			st := s.ExecuteStream(lab, c.params, wire.ExecuteRequest{Kwargs: kwargs})
			id := strings.TrimPrefix(st.Header.Get("Location"), "/v1/jobs/")
			st.AwaitKind("chunk")
			st.Close()
			if c.want == wire.JobStatusCompleted {
				gate.Open()
			}
			if job := s.Wait(id); job.Status != c.want {
				t.Errorf("the job is %s, want %s", job.Status, c.want)
			}
		})
	}
}

func TestJob_ExecuteDisconnect(t *testing.T) {
	s, lab := setup(t)
	ctx, hangUp := contextWithCancel(s)
	gate := s.Gate()
	done := make(chan error, 1)
	body, _ := json.Marshal(map[string]any{"kwargs": map[string]any{"op": "hold", "gate": gate.Path}, "labels": map[string]string{"test": lab}})
	go func() {
		resp, err := s.API.Do(ctx, http.MethodPost, "/v1/plugins/"+lab+"/execute?on_disconnect=cancel", strings.NewReader(string(body)),
			http.Header{"Content-Type": {"application/json"}})
		if err == nil {
			_ = resp.Body.Close()
		}
		done <- err
	}()
	st := s.Stream("/v1/events?after=0&kind=job.started&plugin=" + lab)
	id := Data(t, st.AwaitKind("job.started"))["job"].(string)
	s.Begun(id)
	hangUp()
	<-done
	if job := s.Wait(id); job.Status != wire.JobStatusCancelled {
		t.Errorf("the job of a client that went away is %s", job.Status)
	}
}

func TestJob_ProgressAndMessage(t *testing.T) {
	s, lab := setup(t)
	job := s.Submit(OpOf(lab, "steps", "steps", 4))
	var told []string
	var newest float64
	for _, ev := range s.Stream(JobPath(job.Id, "events")).Rest() {
		if ev.Kind == "progress" {
			d := Data(t, ev)
			told = append(told, d["message"].(string))
			if p := d["progress"].(float64); p >= 0 && p < newest {
				t.Errorf("progress went from %v back to %v", newest, p)
			} else if p >= 0 {
				newest = p
			}
		}
	}
	if !slices.Contains(told, "step 3") || newest < 0.8 {
		t.Errorf("progress told %v, up to %v", told, newest)
	}
	if j := s.Get(job.Id); j.Message != "step 3" {
		t.Errorf("the ended job says %q", j.Message)
	}
}

func TestJob_LogsCarryTheJob(t *testing.T) {
	s, lab := setup(t)
	job := s.Completed(OpOf(lab, "talk", "lines", 3, "text", "hear me"), nil)
	text := s.Text(JobPath(job.Id, "logs"))
	for _, want := range []string{"hear me 0", "hear me 2", "printed by hear me", "moaned by hear me"} {
		if !strings.Contains(text, want) {
			t.Errorf("the job's log lacks %q:\n%s", want, text)
		}
	}
	other := s.Completed(OpOf(lab, "talk", "text", "not me"), nil)
	if text := s.Text(JobPath(other.Id, "logs")); strings.Contains(text, "hear me") {
		t.Errorf("the log of one job has lines of another:\n%s", text)
	}
	if tail := s.Text(JobPath(job.Id, "logs") + "?tail=1"); strings.Count(tail, "\n") != 1 {
		t.Errorf("the last line is %q", tail)
	}
	var levels []string
	for line := range strings.Lines(s.Text(JobPath(job.Id, "logs"), "Accept", "application/x-ndjson")) {
		var rec wire.LogRecord
		if err := json.Unmarshal([]byte(line), &rec); err != nil || rec.Time.IsZero() {
			t.Errorf("a line of the log is %q: %v", line, err)
		}
		levels = append(levels, rec.Level)
	}
	if !slices.Contains(levels, "warning") {
		t.Errorf("the levels are %v", levels)
	}
	if text := s.Text("/v1/plugins/" + lab + "/logs"); !strings.Contains(text, "hear me 1") || !strings.Contains(text, "not me") {
		t.Errorf("the worker's log lacks its jobs' lines:\n%s", text)
	}
}

func TestJob_ErrorsHaveACategory(t *testing.T) {
	s, lab := setup(t)
	for category, retriable := range map[wire.JobErrorCategory]bool{
		wire.JobErrorCategoryFatal: false, wire.JobErrorCategoryUserInput: false, wire.JobErrorCategoryTransient: true, wire.JobErrorCategoryResource: true,
	} {
		req := OpOf(lab, "fail", "category", string(category), "message", "for a reason")
		req.MaxAttempts = 1
		job := s.Failed(req, category)
		if job.Error.Message != "for a reason" || job.Error.Retriable != retriable || job.Error.Type == "" {
			t.Errorf("the error of %s is %+v", category, job.Error)
		}
		if !strings.Contains(job.Error.Traceback, "op_fail") {
			t.Errorf("the traceback of %s does not name the plugin's function:\n%s", category, job.Error.Traceback)
		}
	}
	s.Failed(OpOf(lab, "fail", "nonsense", 1), wire.JobErrorCategoryFatal)
}

func TestJob_RetriableErrorIsTriedAgain(t *testing.T) {
	s, lab := setup(t)
	var run int
	job := s.Completed(OpOf(lab, "flaky", "good", 3), &run)
	if run != 3 || job.Attempt != 3 || s.D.RunsOf(t, job.Id) != 3 {
		t.Errorf("the job completed in run %d, attempt %d, of %d runs", run, job.Attempt, s.D.RunsOf(t, job.Id))
	}
	req := OpOf(lab, "flaky", "good", 3)
	req.MaxAttempts = 2
	job = s.Failed(req, wire.JobErrorCategoryTransient)
	if job.Attempt != 2 || s.D.RunsOf(t, job.Id) != 2 {
		t.Errorf("the job failed in attempt %d after %d runs", job.Attempt, s.D.RunsOf(t, job.Id))
	}
	job = s.Failed(OpOf(lab, "fail"), wire.JobErrorCategoryFatal)
	if n := s.D.RunsOf(t, job.Id); n != 1 {
		t.Errorf("an error that is not retriable was tried %d times", n)
	}
}

func TestJob_RetryMakesANewJob(t *testing.T) {
	s, lab := setup(t)
	first := s.Failed(OpOf(lab, "fail"), wire.JobErrorCategoryFatal)
	again := Must[wire.Job](t)(s.API.RetryJob(s.Ctx(), first.Id))
	if again.Id == first.Id || again.RetryOf != first.Id {
		t.Errorf("the retry is %s of %s", again.Id, again.RetryOf)
	}
	s.IsFailed(s.Wait(again.Id), wire.JobErrorCategoryFatal)
	gate := s.Gate()
	running := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	Problem(t, 409, "state_conflict")(s.API.RetryJob(s.Ctx(), running.Id))
	gate.Open()
	s.Wait(running.Id)
}

func TestJob_PluginOfANewcomer(t *testing.T) {
	s, _ := setup(t)
	var got struct {
		Words   int
		Longest string
	}
	s.Completed(Job("words", map[string]any{"text": "to be or not to be"}), &got)
	if got.Words != 6 || got.Longest != "not" {
		t.Errorf("the result is %+v", got)
	}
	job := s.Failed(Job("words", map[string]any{"test": "misspelt"}), wire.JobErrorCategoryUserInput)
	if !strings.Contains(job.Error.Message, "test") {
		t.Errorf("the message is %q", job.Error.Message)
	}
	req := Job("words", map[string]any{"text": "a b"})
	req.Stream = true
	done := s.Completed(req, nil)
	var chunks []string
	if err := s.API.Follow(s.Ctx(), client.FollowOptions{Path: JobPath(done.Id, "stream")}, func(ev client.Event) error {
		if ev.Kind == "chunk" {
			chunks = append(chunks, string(ev.Data))
		}
		return nil
	}); err != nil || !slices.Equal(chunks, []string{`"a"`, `"b"`}) {
		t.Errorf("the chunks are %v: %v", chunks, err)
	}
}

func TestJob_Deadlines(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	first := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	s.Begun(first.Id)
	req := OpOf(lab, "echo")
	req.QueueTimeout = "100ms"
	late := s.Failed(req, wire.JobErrorCategoryTimeout)
	if s.D.RunsOf(t, late.Id) != 0 {
		t.Error("a job whose queue timeout passed ran")
	}
	gate.Open()
	s.IsCompleted(s.Wait(first.Id))

	req = OpOf(lab, "hold", "gate", s.Gate().Path)
	req.RunTimeout = "150ms"
	long := s.Failed(req, wire.JobErrorCategoryTimeout)
	if ran := long.FinishedAt.Sub(long.StartedAt); ran < 150*time.Millisecond {
		t.Errorf("the job was stopped after %s", ran)
	}
	events := s.Stream(JobPath(long.Id, "events")).Rest()
	if !slices.Contains(Kinds(events), "job.cancel_phase") || slices.Contains(Kinds(events), "job.cancel_requested") {
		t.Errorf("its events are %v", Kinds(events))
	}
}
