package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
)

func TestSubmit_IsDurableAndReadBack(t *testing.T) {
	t.Parallel()
	f := setup(t)
	r := f.do("POST", "/v1/jobs", `{"plugin":"textstats","args":["to be"],"kwargs":{"n":1},"priority":3,"labels":{"a":"b"},"queue_timeout":"1h"}`)
	require.Equal(t, 202, r.StatusCode, "%s", r.body)
	var j wire.Job
	r.into(t, &j)
	require.Equal(t, "/v1/jobs/"+j.Id, r.Header.Get("Location"))
	require.NotEmpty(t, r.Header.Get("ETag"))

	g := f.do("GET", r.Header.Get("Location"), nil)
	var got wire.Job
	g.into(t, &got)
	require.JSONEq(t, `["to be"]`, string(got.Args))
	require.JSONEq(t, `{"n":1}`, string(got.Kwargs))
	require.Equal(t, wire.JobStatusPending, got.Status)
	require.Equal(t, "1h0m0s", got.QueueTimeout)
	require.Equal(t, "1h0m0s", got.RunTimeout, "the manifest's, as the submitter named none")
	require.Equal(t, 3, got.Priority)
	require.Regexp(t, `^uid:\d+$`, got.Submitter)
}

func TestSubmit_SameKeySameBodyIsTheSameJob(t *testing.T) {
	t.Parallel()
	f := setup(t)
	body := `{"plugin":"textstats","args":[1]}`
	first := f.do("POST", "/v1/jobs", body, header("Idempotency-Key", "k"))
	again := f.do("POST", "/v1/jobs", body, header("Idempotency-Key", "k"))
	other := f.do("POST", "/v1/jobs", `{"plugin":"textstats","args":[2]}`, header("Idempotency-Key", "k"))
	require.Equal(t, []int{202, 200, 409}, []int{first.StatusCode, again.StatusCode, other.StatusCode})
	require.Equal(t, first.Header.Get("Location"), again.Header.Get("Location"))
	require.Equal(t, "key_reused", other.code())

	put := f.do("PUT", "/v1/jobs/mine-1", body)
	same := f.do("PUT", "/v1/jobs/mine-1", body)
	diff := f.do("PUT", "/v1/jobs/mine-1", `{"plugin":"speech"}`)
	require.Equal(t, []int{202, 200, 409}, []int{put.StatusCode, same.StatusCode, diff.StatusCode})
	require.Equal(t, 200, f.do("GET", "/v1/jobs/mine-1", nil).StatusCode)
}

func TestBatch_AllOrNone(t *testing.T) {
	t.Parallel()
	f := setup(t)
	r := f.do("POST", "/v1/jobs:batch", `{"jobs":[{"plugin":"textstats"},{"plugin":"speech","id":"b-2"}]}`)
	require.Equal(t, 202, r.StatusCode, "%s", r.body)
	var acc wire.BatchAccepted
	r.into(t, &acc)
	require.Len(t, acc.Jobs, 2)
	require.Equal(t, "b-2", acc.Jobs[1].Id)

	bad := f.do("POST", "/v1/jobs:batch", `{"jobs":[{"plugin":"textstats","id":"b-3"},{"plugin":"textstat"}]}`)
	require.Equal(t, 422, bad.StatusCode)
	var p wire.Problem
	bad.into(t, &p)
	require.Equal(t, "/jobs/1/plugin", p.Errors[0].Pointer)
	require.Equal(t, "textstats", p.Errors[0].Suggestion)
	require.Equal(t, 404, f.do("GET", "/v1/jobs/b-3", nil).StatusCode)

	// A batch may be long, each job of it only as long as one alone.
	long := `{"plugin":"textstats","args":["` + strings.Repeat("x", 700<<10) + `"]}`
	require.Equal(t, 202, f.do("POST", "/v1/jobs:batch", `{"jobs":[`+long+`,`+long+`,`+long+`]}`).StatusCode)
	r = f.do("POST", "/v1/jobs:batch", `{"jobs":[{"plugin":"textstats","args":["`+strings.Repeat("x", 1<<20)+`"]}]}`)
	require.Equal(t, 413, r.StatusCode)
}

func TestWait_HoldsUntilFinalAndCarriesTheResult(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"textstats"}`)
	run := f.run(id)
	answered := make(chan reply, 1)
	go func() { answered <- f.do("GET", "/v1/jobs/"+id+"?wait=1m", nil) }()
	f.finish(run, `{"words":2}`)
	var j wire.Job
	(<-answered).into(t, &j)
	require.Equal(t, wire.JobStatusCompleted, j.Status)
	require.JSONEq(t, `{"words":2}`, string(j.Result.Value))

	pending := f.submit(`{"plugin":"textstats","hold":true}`)
	f.do("GET", "/v1/jobs/"+pending+"?wait=1ms", nil).into(t, &j)
	require.Equal(t, wire.JobPhaseHeld, j.Phase, "an answer, not an error, when the time is over")
	r := f.do("POST", "/v1/jobs?wait=1ms", `{"plugin":"textstats","hold":true}`)
	require.Equal(t, 202, r.StatusCode)
	r = f.do("POST", "/v1/jobs", `{"plugin":"textstats","hold":true}`, header("Prefer", "respond-async, wait=0"))
	require.Equal(t, 202, r.StatusCode)
}

func TestExecute_AnswersWithTheFinalJob(t *testing.T) {
	t.Parallel()
	f := setup(t)
	answered := make(chan reply, 1)
	go func() { answered <- f.do("POST", "/v1/plugins/textstats/execute", `{"args":["x"]}`) }()
	id := f.waitPending()
	f.finish(f.run(id), `42`)
	r := <-answered
	require.Equal(t, 200, r.StatusCode)
	var j wire.Job
	r.into(t, &j)
	require.Equal(t, "42", string(j.Result.Value))
	require.Equal(t, 404, f.do("POST", "/v1/plugins/nobody/execute", `{}`).StatusCode)
	require.Equal(t, 202, f.do("POST", "/v1/plugins/textstats/execute?wait=1ms", `{}`).StatusCode)
}

// waitPending returns the id of the first job that is pending.
func (f *fixture) waitPending() string {
	f.t.Helper()
	for {
		if g := f.queue.Groups(1); len(g) > 0 && len(g[0].Ready) > 0 {
			return string(g[0].Ready[0].ID)
		}
		select {
		case <-f.queue.Changed():
		case <-f.t.Context().Done():
			f.t.Fatal("no job came")
		}
	}
}

func TestPatch_IfMatchAndPriority(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"textstats"}`)
	tag := f.do("GET", "/v1/jobs/"+id, nil).Header.Get("ETag")
	r := f.do("PATCH", "/v1/jobs/"+id, `{"priority":9}`, header("If-Match", tag))
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	require.NotEqual(t, tag, r.Header.Get("ETag"))
	require.Equal(t, 412, f.do("PATCH", "/v1/jobs/"+id, `{"priority":1}`, header("If-Match", tag)).StatusCode)
	require.Equal(t, 412, f.do("PATCH", "/v1/jobs/"+id, `{"priority":1}`, header("If-Match", "nonsense")).StatusCode)
	require.Equal(t, 200, f.do("PATCH", "/v1/jobs/"+id, `{"labels":{"x":"y"}}`).StatusCode)
	f.finish(f.run(id), `1`)
	require.Equal(t, 409, f.do("PATCH", "/v1/jobs/"+id, `{"priority":1}`).StatusCode)
}

func TestJob_HoldReleaseCancelRetryExplain(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"textstats"}`)
	var j wire.Job
	f.do("POST", "/v1/jobs/"+id+"/hold", nil).into(t, &j)
	require.Equal(t, wire.JobPhaseHeld, j.Phase)
	require.Equal(t, 200, f.do("POST", "/v1/jobs/"+id+"/release", nil).StatusCode)
	require.Equal(t, 200, f.do("GET", "/v1/jobs/"+id+"/explain", nil).StatusCode)
	require.Equal(t, 409, f.do("POST", "/v1/jobs/"+id+"/retry", nil).StatusCode)
	for range 2 { // idempotent
		r := f.do("POST", "/v1/jobs/"+id+"/cancel", `{"reason":"wrong file"}`)
		require.Equal(t, 202, r.StatusCode)
		r.into(t, &j)
		require.Equal(t, wire.JobStatusCancelled, j.Status)
	}
	require.Equal(t, "wrong file", j.CancelReason)
	r := f.do("POST", "/v1/jobs/"+id+"/retry", nil)
	require.Equal(t, 202, r.StatusCode)
	r.into(t, &j)
	require.Equal(t, id, j.RetryOf)
	require.Equal(t, 409, f.do("POST", "/v1/jobs/"+id+"/hold", nil).StatusCode)
	require.Equal(t, 404, f.do("POST", "/v1/jobs/nobody/cancel", nil).StatusCode)
}

func TestList_PagesWithoutGapAndFilters(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for i := range 7 {
		f.submit(fmt.Sprintf(`{"plugin":"textstats","labels":{"n":"%d"}}`, i))
	}
	f.submit(`{"plugin":"speech"}`)
	seen, cursor := map[string]bool{}, ""
	for {
		var page wire.JobPage
		f.do("GET", "/v1/jobs?plugin=textstats&limit=3&cursor="+cursor, nil).into(t, &page)
		require.NotZero(t, page.ReadAt)
		for _, j := range page.Jobs {
			require.False(t, seen[j.Id])
			seen[j.Id] = true
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	require.Len(t, seen, 7)
	var page wire.JobPage
	f.do("GET", "/v1/jobs?label=n%3D4&status=pending&status=running&submitter=me", nil).into(t, &page)
	require.Len(t, page.Jobs, 1)
	for path, code := range map[string]string{
		"/v1/jobs?cursor=nonsense": "bad_cursor", "/v1/jobs?limit=0": "invalid_parameter", "/v1/jobs?limit=x": "invalid_parameter",
		"/v1/jobs?status=done": "invalid_parameter", "/v1/jobs?label=x": "invalid_parameter", "/v1/jobs/x?wait=soon": "invalid_parameter",
	} {
		r := f.do("GET", path, nil)
		require.Equal(t, 400, r.StatusCode, path)
		require.Equal(t, code, r.code(), path)
	}
}

func TestQueue_OverviewAndControls(t *testing.T) {
	t.Parallel()
	f := setup(t)
	a, b := f.submit(`{"plugin":"textstats"}`), f.submit(`{"plugin":"textstats","priority":5}`)
	var q wire.Queue
	f.do("GET", "/v1/queue", nil).into(t, &q)
	require.Equal(t, []string{b, a}, []string{q.Pending[0].Id, q.Pending[1].Id})
	require.Equal(t, 1, q.Pending[0].Position)
	var c wire.Controls
	f.do("POST", "/v1/queue/pause?plugin=textstats", nil).into(t, &c)
	require.Equal(t, wire.QueueModePaused, c.Plugins["textstats"])
	f.do("POST", "/v1/queue/drain", nil).into(t, &c)
	require.Equal(t, wire.QueueModeDraining, c.Mode)
	r := f.do("POST", "/v1/jobs", `{"plugin":"textstats"}`)
	require.Equal(t, 503, r.StatusCode)
	require.NotEmpty(t, r.Header.Get("Retry-After"))
	f.do("POST", "/v1/queue/resume", nil).into(t, &c)
	require.Equal(t, wire.QueueModeRunning, c.Mode)
	require.Equal(t, 404, f.do("POST", "/v1/queue/pause?plugin=nobody", nil).StatusCode)
	require.Equal(t, 200, f.do("GET", "/v1/queue/plan", nil).StatusCode)
	require.Equal(t, 404, f.do("GET", "/v1/queue/plan?plugin=nobody", nil).StatusCode)
}

func TestResult_RangesAndConditions(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"textstats"}`)
	require.Equal(t, "not_final", f.do("GET", "/v1/jobs/"+id+"/result", nil).code())
	big := `"` + strings.Repeat("x", 3<<20) + `"`
	f.finish(f.run(id), big)
	r := f.do("GET", "/v1/jobs/"+id+"/result", nil)
	require.Equal(t, 200, r.StatusCode)
	require.Equal(t, big, string(r.body))
	tag := r.Header.Get("ETag")
	require.NotEmpty(t, tag)
	part := f.do("GET", "/v1/jobs/"+id+"/result", nil, header("Range", "bytes=1-3"))
	require.Equal(t, 206, part.StatusCode)
	require.Equal(t, "xxx", string(part.body))
	require.Equal(t, http.StatusNotModified, f.rawStatus("/v1/jobs/"+id+"/result", header("If-None-Match", tag)))
	var j wire.Job
	f.do("GET", "/v1/jobs/"+id, nil).into(t, &j)
	require.Empty(t, j.Result.Value, "too large to be carried in the job")

	failed := f.submit(`{"plugin":"textstats"}`)
	_, err := f.run(failed).Finish(t.Context(), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "no", Type: "ValueError", Traceback: "Traceback"}})
	require.NoError(t, err)
	require.Equal(t, "no_result", f.do("GET", "/v1/jobs/"+failed+"/result", nil).code())
	f.do("GET", "/v1/jobs/"+failed, nil).into(t, &j)
	require.Equal(t, "ValueError", j.Error.Type)
}

// rawStatus is for answers that the description does not list, like 304.
func (f *fixture) rawStatus(path string, edits ...edit) int {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), "GET", "http://localhost"+path, nil)
	require.NoError(f.t, err)
	for _, e := range edits {
		e(req)
	}
	resp, err := f.socket.Do(req)
	require.NoError(f.t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

func TestJobLogs_TextNDJSONTailAndFollow(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"textstats"}`)
	run := f.run(id)
	for i := range 5 {
		require.NoError(t, run.Sink().Log(t.Context(), jobs.LogRecord{Level: "info", Logger: "demo", Message: fmt.Sprintf("line %d", i), Time: time.Unix(int64(i), 0)}))
		require.NoError(t, run.Sink().Chunk(t.Context(), []byte(`1`), ""))
	}
	r := f.do("GET", "/v1/jobs/"+id+"/logs?tail=2", nil)
	require.Equal(t, "1970-01-01T00:00:03.000Z info demo: line 3\n1970-01-01T00:00:04.000Z info demo: line 4\n", string(r.body))
	r = f.do("GET", "/v1/jobs/"+id+"/logs", nil, header("Accept", "application/x-ndjson"))
	lines := strings.Split(strings.TrimSpace(string(r.body)), "\n")
	require.Len(t, lines, 5)
	var rec wire.LogRecord
	require.NoError(t, json.Unmarshal([]byte(lines[4]), &rec))
	require.Equal(t, "line 4", rec.Message)

	got := make(chan reply, 1)
	go func() { got <- f.do("GET", "/v1/jobs/"+id+"/logs?tail=1&follow=true", nil) }()
	require.NoError(t, run.Sink().Log(t.Context(), jobs.LogRecord{Level: "error", Message: "last", Time: time.Unix(9, 0)}))
	f.finish(run, `1`)
	require.Contains(t, string((<-got).body), "error last\n")
	require.Equal(t, 400, f.do("GET", "/v1/jobs/"+id+"/logs?tail=-1", nil).StatusCode)
	require.Equal(t, 404, f.do("GET", "/v1/jobs/nobody/logs", nil).StatusCode)
}
