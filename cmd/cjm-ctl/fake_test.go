package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// fakeDaemon answers the API from memory, with plugins whose jobs do what their
// names say. It is built on the interface that is generated from the API's
// description, so a changed path or parameter does not compile.
type fakeDaemon struct {
	wire.Unimplemented
	server *httptest.Server
	token  string // required when not empty

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at every change
	jobs      []*fakeJob
	events    []wire.JournalEvent
	config    map[string]any
	secrets   map[string]string
	controls  wire.Controls
	tokens    []wire.Token
	instances []wire.Instance
	leases    []wire.Lease
	enabled   bool
	loaded    bool
	agent     string // of the newest request
	cut       bool   // the next stream is cut after one record
	deaf      bool   // jobs ignore cancels
	closing   chan struct{}
}

type fakeJob struct {
	wire.Job
	records []fakeRecord
	result  []byte
	kind    string // content type of the result
	cancel  chan struct{}
}

type fakeRecord struct {
	kind string
	data any
}

var fakeTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// startFake serves until the test ends; token "" lets everyone in.
func startFake(t testing.TB, l net.Listener, token string) *fakeDaemon {
	f := &fakeDaemon{
		token:   token,
		changed: make(chan struct{}), closing: make(chan struct{}), enabled: true,
		config:   map[string]any{"language": "en", "beam": 5},
		secrets:  map[string]string{},
		controls: wire.Controls{Mode: wire.QueueModeRunning},
	}
	f.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: f.guard(wire.Handler(f))}}
	f.server.Start()
	t.Cleanup(func() {
		close(f.closing) // ends streams and sleepers
		f.server.Close()
	})
	return f
}

func (f *fakeDaemon) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.agent = r.UserAgent()
		f.mu.Unlock()
		if f.token != "" && r.Header.Get("Authorization") != "Bearer "+f.token {
			fakeProblem(w, wire.Problem{Status: 401, Code: "unauthorized", Title: "A token is needed."})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func fakeProblem(w http.ResponseWriter, p wire.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// change runs fn under the lock and wakes everyone who waits.
func (f *fakeDaemon) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.changed)
	f.changed = make(chan struct{})
}

// until blocks until ok, asked under the lock, says true.
func (f *fakeDaemon) until(done <-chan struct{}, ok func() bool) bool {
	for {
		f.mu.Lock()
		good, changed := ok(), f.changed
		f.mu.Unlock()
		if good {
			return true
		}
		select {
		case <-changed:
		case <-done:
			return false
		case <-f.closing:
			return false
		}
	}
}

func (f *fakeDaemon) find(w http.ResponseWriter, id string) *fakeJob {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.jobs {
		if j.Id == id {
			return j
		}
	}
	fakeProblem(w, wire.Problem{Status: 404, Code: "job_not_found", Title: "There is no such job.", Detail: "There is no job " + id + ".", Next: "GET /v1/jobs lists them"})
	return nil
}

func (f *fakeDaemon) recordLocked(j *fakeJob, kind string, data any) {
	j.records = append(j.records, fakeRecord{kind, data})
	if strings.HasPrefix(kind, "job.") {
		f.events = append(f.events, wire.JournalEvent{Seq: int64(len(f.events) + 1), At: fakeTime, Kind: kind, Job: j.Id, Plugin: j.Plugin, Data: json.RawMessage(`{}`)})
	}
}

func (f *fakeDaemon) state(j *fakeJob, kind string, data map[string]any) {
	f.recordLocked(j, kind, wire.StateRecord{At: fakeTime, Seq: int64(len(f.events) + 1), AdditionalProperties: data})
}

func (f *fakeDaemon) finish(j *fakeJob, status wire.JobStatus, result string) {
	j.Status, j.Phase = status, ""
	j.FinishedAt = j.StartedAt.Add(1500 * time.Millisecond)
	if result != "" {
		j.result = []byte(result)
		j.Result = &wire.ResultInfo{Size: int64(len(result)), ContentType: j.kind, Url: "/v1/jobs/" + j.Id + "/result", Partial: status != wire.JobStatusCompleted}
	}
	f.state(j, "job."+string(status), nil)
}

func (f *fakeDaemon) accept(w http.ResponseWriter, r *http.Request, id string) {
	var req wire.JobRequest
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		fakeProblem(w, wire.Problem{Status: 422, Code: "invalid", Title: err.Error()})
		return
	}
	if req.Plugin == "nowhere" {
		fakeProblem(w, wire.Problem{Status: 422, Code: "unknown_plugin", Title: "There is no such plugin.", Detail: "There is no plugin with this name.",
			Next: "GET /v1/plugins lists them", Errors: []wire.FieldError{{Pointer: "/plugin", Message: "is not known", Suggestion: "textstats"}}})
		return
	}
	j := &fakeJob{kind: "application/json", cancel: make(chan struct{}, 1)}
	f.change(func() {
		if id == "" {
			id = fmt.Sprintf("job-%d", len(f.jobs)+1)
		}
		j.Job = wire.Job{
			Id: id, Plugin: req.Plugin, Status: wire.JobStatusRunning, Phase: wire.JobPhaseExecuting, Priority: req.Priority,
			Attempt: 1, MaxAttempts: 3, Stream: req.Stream, Labels: req.Labels, Args: req.Args, Kwargs: req.Kwargs,
			RunTimeout: req.RunTimeout, Submitter: "uid:1000", Revision: 1, CreatedAt: fakeTime, StartedAt: fakeTime.Add(time.Second),
		}
		f.jobs = append(f.jobs, j)
		f.state(j, "job.submitted", nil)
		f.work(j)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Location", "/v1/jobs/"+id)
	answer(w, http.StatusAccepted, j.Job)
}

// work does what the plugin's name says; called under the lock.
func (f *fakeDaemon) work(j *fakeJob) {
	if j.Plugin == "stuck" {
		j.Status, j.Phase, j.StartedAt, j.Attempt = wire.JobStatusPending, wire.JobPhaseBlocked, time.Time{}, 0
		j.Block = &wire.Block{Code: "resource", Sentence: "It needs 8.0 GiB of memory and 2.0 GiB are free.", Holders: []string{"whisper"}}
		return
	}
	f.state(j, "job.started", map[string]any{"attempt": 1})
	f.state(j, "job.phase", map[string]any{"phase": "executing"})
	switch j.Plugin {
	case "textstats":
		f.recordLocked(j, "log", wire.LogRecord{Time: fakeTime, Level: "info", Logger: "textstats", Message: "counting"})
		f.finish(j, wire.JobStatusCompleted, `{"args":`+string(j.Args)+`,"kwargs":`+string(j.Kwargs)+`}`)
	case "counter":
		f.recordLocked(j, "progress", wire.ProgressRecord{At: fakeTime, Progress: 0.43, Message: "half way"})
		for _, v := range []string{`"one"`, `"two\u001b[31m"`, `{"n":3}`} {
			f.recordLocked(j, "chunk", json.RawMessage(v))
		}
		f.finish(j, wire.JobStatusCompleted, `{"chunks":3}`)
	case "broken":
		j.Error = &wire.JobError{Category: wire.JobErrorCategoryUserInput, Message: "the text is empty", Type: "ValueError", Traceback: "Traceback (most recent call last):\nValueError: the text is empty\n", Fields: []string{"text"}}
		f.finish(j, wire.JobStatusFailed, "")
	case "bytes":
		j.kind = "application/octet-stream"
		f.finish(j, wire.JobStatusCompleted, "\x00\x01")
	case "sleeper":
		f.recordLocked(j, "progress", wire.ProgressRecord{At: fakeTime, Progress: 0.5, Message: "sleeping"})
		go f.sleep(j)
	}
}

// sleep ends the job when it is cancelled.
func (f *fakeDaemon) sleep(j *fakeJob) {
	select {
	case <-j.cancel:
		f.change(func() {
			f.state(j, "job.cancel_phase", map[string]any{"phase": "cooperative", "after_ms": 0})
			f.finish(j, wire.JobStatusCancelled, `"slept a little"`)
		})
	case <-f.closing:
	}
}

func (f *fakeDaemon) SubmitJob(w http.ResponseWriter, r *http.Request, _ wire.SubmitJobParams) {
	f.accept(w, r, "")
}

func (f *fakeDaemon) PutJob(w http.ResponseWriter, r *http.Request, id wire.JobID, _ wire.PutJobParams) {
	f.accept(w, r, id)
}

func (f *fakeDaemon) SubmitBatch(w http.ResponseWriter, r *http.Request) {
	var req wire.BatchRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		fakeProblem(w, wire.Problem{Status: 422, Code: "invalid", Title: err.Error()})
		return
	}
	out := wire.BatchAccepted{}
	for i := range req.Jobs {
		out.Jobs = append(out.Jobs, wire.BatchJob{Id: fmt.Sprintf("batch-%d", i+1), Created: true, Status: wire.JobStatusPending})
	}
	answer(w, http.StatusAccepted, out)
}

func (f *fakeDaemon) GetJob(w http.ResponseWriter, r *http.Request, id wire.JobID, p wire.GetJobParams) {
	j := f.find(w, id)
	if j == nil {
		return
	}
	if p.Wait != nil && !f.until(r.Context().Done(), func() bool { return final(j.Status) }) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	answer(w, http.StatusOK, j.Job)
}

func (f *fakeDaemon) ListJobs(w http.ResponseWriter, _ *http.Request, p wire.ListJobsParams) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := wire.JobPage{Jobs: []wire.Job{}, ReadAt: int64(len(f.events))}
	from := 0
	if p.Cursor != nil {
		from, _ = strconv.Atoi(*p.Cursor)
	}
	for i, j := range slices.Backward(f.jobs) {
		if at := len(f.jobs) - 1 - i; at < from || len(p.Status) > 0 && !slices.Contains(p.Status, j.Status) || p.Plugin != nil && *p.Plugin != j.Plugin {
			continue
		}
		if p.Limit != nil && len(page.Jobs) == *p.Limit {
			page.Next = strconv.Itoa(len(f.jobs) - 1 - i)
			break
		}
		page.Jobs = append(page.Jobs, j.Job)
	}
	answer(w, http.StatusOK, page)
}

func (f *fakeDaemon) CancelJob(w http.ResponseWriter, r *http.Request, id wire.JobID) {
	j := f.find(w, id)
	if j == nil {
		return
	}
	var req wire.CancelRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	f.change(func() {
		if final(j.Status) {
			return
		}
		j.CancelReason, j.CancelRequestedAt = req.Reason, fakeTime
		j.Phase = wire.JobPhaseCancelling
		f.state(j, "job.cancel_requested", nil)
		if j.Plugin == "stuck" {
			f.finish(j, wire.JobStatusCancelled, "")
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.deaf {
		select {
		case j.cancel <- struct{}{}:
		default:
		}
	}
	answer(w, http.StatusAccepted, j.Job)
}

func (f *fakeDaemon) GetResult(w http.ResponseWriter, _ *http.Request, id wire.JobID, _ wire.GetResultParams) {
	j := f.find(w, id)
	if j == nil {
		return
	}
	w.Header().Set("Content-Type", j.kind)
	w.Header().Set("X-Result-Partial", strconv.FormatBool(j.Result.Partial))
	_, _ = w.Write(j.result)
}

func (f *fakeDaemon) JobEvents(w http.ResponseWriter, r *http.Request, id wire.JobID, p wire.JobEventsParams) {
	j := f.find(w, id)
	if j == nil {
		return
	}
	at := 0
	if p.After != nil {
		at, _ = strconv.Atoi(*p.After)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "retry: 10\n\n")
	flush := http.NewResponseController(w).Flush
	for f.until(r.Context().Done(), func() bool { return at < len(j.records) || final(j.Status) }) {
		f.mu.Lock()
		records, end, cut := j.records[at:], final(j.Status), f.cut
		if cut {
			records, f.cut = records[:1], false
		}
		f.mu.Unlock()
		for _, rec := range records {
			at++
			data, _ := json.Marshal(rec.data)
			fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", at, rec.kind, data)
		}
		if cut {
			return
		}
		if end {
			fmt.Fprintf(w, "id: %d\nevent: stream.end\ndata: {\"reason\":\"final\"}\n\n", at)
			return
		}
		if flush() != nil {
			return
		}
	}
}

func (f *fakeDaemon) StreamEvents(w http.ResponseWriter, r *http.Request, p wire.StreamEventsParams) {
	at := 0
	if p.After != nil {
		at, _ = strconv.Atoi(*p.After)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	for f.until(r.Context().Done(), func() bool { return at < len(f.events) }) {
		f.mu.Lock()
		rest := f.events[at:]
		f.mu.Unlock()
		for _, e := range rest {
			at++
			if len(p.Kind) > 0 && !slices.Contains(p.Kind, e.Kind) {
				continue
			}
			data, _ := json.Marshal(e)
			fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", at, e.Kind, data)
		}
		if flush() != nil {
			return
		}
	}
}
