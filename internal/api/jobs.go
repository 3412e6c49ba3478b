package api

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
)

// defaultPage is how many jobs a list answers with when nobody says.
const defaultPage = 100

// ListJobs is GET /v1/jobs.
func (s *server) ListJobs(ctx context.Context, req wire.ListJobsRequestObject) (wire.ListJobsResponseObject, error) {
	limit, err := pageSize(req.Params.Limit)
	if err != nil {
		return nil, err
	}
	q := jobs.ListQuery{Instance: deref(req.Params.Plugin), Submitter: deref(req.Params.Submitter), Cursor: deref(req.Params.Cursor), Limit: limit}
	if q.Submitter == "me" {
		q.Submitter = principalOf(ctx).Name
	}
	for _, st := range req.Params.Status {
		if !st.Valid() {
			return nil, badParam("status", "must be one of pending, running, completed, failed, cancelled")
		}
		q.Statuses = append(q.Statuses, jobs.Status(st))
	}
	for _, l := range req.Params.Label {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return nil, badParam("label", "must be key=value")
		}
		if q.Label == nil {
			q.Label = map[string]string{}
		}
		q.Label[key] = value
	}
	page, err := s.o.Jobs.List(ctx, q)
	if err != nil {
		return nil, err
	}
	return wire.ListJobs200JSONResponse{Jobs: wireJobs(page.Jobs), Next: page.Next, ReadAt: int64(page.ReadAt)}, nil
}

func pageSize(limit *int) (int, error) {
	if limit == nil {
		return defaultPage, nil
	}
	if *limit < 1 || *limit > 500 {
		return 0, badParam("limit", "must be from 1 to 500")
	}
	return *limit, nil
}

// GetJob is GET /v1/jobs/{id}.
func (s *server) GetJob(ctx context.Context, req wire.GetJobRequestObject) (wire.GetJobResponseObject, error) {
	hold, err := s.waitTime(req.Params.Wait, nil)
	if err != nil {
		return nil, err
	}
	j, err := s.o.Jobs.Get(ctx, jobs.ID(req.Id))
	if err != nil {
		return nil, err
	}
	if hold > 0 && !j.Status.Final() {
		if j, err = s.await(ctx, j, hold); err != nil {
			return nil, err
		}
	}
	out, err := s.withResult(ctx, wireJobFull(j), j)
	if err != nil {
		return nil, err
	}
	return wire.GetJob200JSONResponse{JobJSONResponse: jobAnswer(out)}, nil
}

// own refuses to touch a job of somebody else, unless the caller is admin.
func (s *server) own(ctx context.Context, id string) (jobs.ID, error) {
	who := principalOf(ctx)
	if who.Role == RoleAdmin {
		return jobs.ID(id), nil
	}
	j, err := s.o.Jobs.Get(ctx, jobs.ID(id))
	if err != nil {
		return "", err
	}
	if j.Submitter != who.Name { // a submitter never changes, so this stays true
		return "", &requestError{Code: codeNotYours}
	}
	return j.ID, nil
}

// PatchJob is PATCH /v1/jobs/{id}.
func (s *server) PatchJob(ctx context.Context, req wire.PatchJobRequestObject) (wire.PatchJobResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	p := jobs.Patch{Priority: req.Body.Priority, Labels: req.Body.Labels}
	if m := deref(req.Params.IfMatch); m != "" && m != "*" {
		p.IfMatch, err = strconv.ParseInt(strings.Trim(strings.TrimPrefix(m, "W/"), `"`), 10, 64)
		if err != nil || p.IfMatch <= 0 {
			return nil, &requestError{Code: codeRevision, Detail: "If-Match is no ETag of a job."}
		}
	}
	j, err := s.o.Jobs.Patch(ctx, id, p)
	if err != nil {
		return nil, err
	}
	return wire.PatchJob200JSONResponse{JobJSONResponse: jobAnswer(wireJob(j))}, nil
}

// CancelJob is POST /v1/jobs/{id}/cancel.
func (s *server) CancelJob(ctx context.Context, req wire.CancelJobRequestObject) (wire.CancelJobResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	reason := ""
	if req.Body != nil {
		reason = req.Body.Reason
	}
	j, err := s.o.Jobs.Cancel(ctx, id, principalOf(ctx).Name, reason)
	if err != nil {
		return nil, err
	}
	return wire.CancelJob202JSONResponse{JobAcceptedJSONResponse: jobAccepted(wireJob(j))}, nil
}

// RetryJob is POST /v1/jobs/{id}/retry.
func (s *server) RetryJob(ctx context.Context, req wire.RetryJobRequestObject) (wire.RetryJobResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	j, err := s.o.Jobs.Retry(ctx, id, principalOf(ctx).Name)
	if err != nil {
		return nil, err
	}
	return wire.RetryJob202JSONResponse{JobAcceptedJSONResponse: jobAccepted(wireJob(j))}, nil
}

// HoldJob is POST /v1/jobs/{id}/hold.
func (s *server) HoldJob(ctx context.Context, req wire.HoldJobRequestObject) (wire.HoldJobResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	j, err := s.o.Jobs.Hold(ctx, id)
	if err != nil {
		return nil, err
	}
	return wire.HoldJob200JSONResponse{JobJSONResponse: jobAnswer(wireJob(j))}, nil
}

// ReleaseJob is POST /v1/jobs/{id}/release.
func (s *server) ReleaseJob(ctx context.Context, req wire.ReleaseJobRequestObject) (wire.ReleaseJobResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	j, err := s.o.Jobs.Release(ctx, id)
	if err != nil {
		return nil, err
	}
	return wire.ReleaseJob200JSONResponse{JobJSONResponse: jobAnswer(wireJob(j))}, nil
}

// ExplainJob is GET /v1/jobs/{id}/explain.
func (s *server) ExplainJob(ctx context.Context, req wire.ExplainJobRequestObject) (wire.ExplainJobResponseObject, error) {
	e, err := s.o.Lifecycle.Explain(ctx, jobs.ID(req.Id))
	if err != nil {
		return nil, err
	}
	return wire.ExplainJob200JSONResponse{Job: string(e.Job), Status: wire.JobStatus(e.Status), Phase: wire.JobPhase(e.Phase),
		Sentence: e.Summary, Block: wireBlock(e.Block), Ahead: max(e.Ahead, 0), Policy: e.Policy, Priority: e.Priority,
		Needs: wireDemand(e.Needs), FreeRamMb: e.FreeRAM.MB(), Monitor: e.Monitor, Fresh: e.Fresh, Worker: e.Worker,
		SlotsFree: e.SlotsFree, Slots: e.Slots, Claims: wireClaims(e.Claims), Need: wireNeed(e.Need), Rank: wireRank(e.Rank),
		Devices: wireDevices(e.Devices, nil), Shadow: wireShadow(e.Shadow)}, nil
}

// GetQueue is GET /v1/queue.
func (s *server) GetQueue(ctx context.Context, req wire.GetQueueRequestObject) (wire.GetQueueResponseObject, error) {
	limit, err := pageSize(req.Params.Limit)
	if err != nil {
		return nil, err
	}
	o, err := s.o.Jobs.Overview(ctx, limit)
	if err != nil {
		return nil, err
	}
	out := wire.GetQueue200JSONResponse{Running: wireJobs(o.Running), Pending: wireJobs(o.Pending), History: wireJobs(o.History),
		Totals: wire.Totals{Pending: o.Totals.Pending, Running: o.Totals.Running, Completed: o.Totals.Completed,
			Failed: o.Totals.Failed, Cancelled: o.Totals.Cancelled},
		Waiting: waiting(s.o.Lifecycle.State().Groups), Controls: wireControls(o.Controls), ReadAt: int64(o.ReadAt)}
	for i := range out.Pending {
		out.Pending[i].Position = i + 1
	}
	return out, nil
}

func wireControls(m map[string]jobs.Mode) wire.Controls {
	out := wire.Controls{Mode: wire.QueueModeRunning}
	for scope, mode := range m {
		if scope == "" {
			out.Mode = wire.QueueMode(mode)
			continue
		}
		if mode == jobs.ModeRunning {
			continue
		}
		if out.Plugins == nil {
			out.Plugins = map[string]wire.QueueMode{}
		}
		out.Plugins[scope] = wire.QueueMode(mode)
	}
	return out
}

// control sets the mode of the queue or of one instance's part of it.
func (s *server) control(ctx context.Context, scope *string, mode jobs.Mode) (wire.ControlsJSONResponse, error) {
	name := deref(scope)
	if name != "" {
		if _, _, err := s.o.Plugins.Instance(name); err != nil {
			return wire.ControlsJSONResponse{}, err
		}
	}
	if err := s.o.Jobs.SetControl(ctx, name, mode); err != nil {
		return wire.ControlsJSONResponse{}, fmt.Errorf("cannot set the mode of the queue: %w", err)
	}
	return wire.ControlsJSONResponse(wireControls(s.o.Jobs.Controls())), nil
}

// PauseQueue is POST /v1/queue/pause.
func (s *server) PauseQueue(ctx context.Context, req wire.PauseQueueRequestObject) (wire.PauseQueueResponseObject, error) {
	c, err := s.control(ctx, req.Params.Plugin, jobs.ModePaused)
	return wire.PauseQueue200JSONResponse{ControlsJSONResponse: c}, err
}

// ResumeQueue is POST /v1/queue/resume.
func (s *server) ResumeQueue(ctx context.Context, req wire.ResumeQueueRequestObject) (wire.ResumeQueueResponseObject, error) {
	c, err := s.control(ctx, req.Params.Plugin, jobs.ModeRunning)
	return wire.ResumeQueue200JSONResponse{ControlsJSONResponse: c}, err
}

// DrainQueue is POST /v1/queue/drain.
func (s *server) DrainQueue(ctx context.Context, req wire.DrainQueueRequestObject) (wire.DrainQueueResponseObject, error) {
	c, err := s.control(ctx, req.Params.Plugin, jobs.ModeDraining)
	return wire.DrainQueue200JSONResponse{ControlsJSONResponse: c}, err
}

// GetPlan is GET /v1/queue/plan.
func (s *server) GetPlan(ctx context.Context, req wire.GetPlanRequestObject) (wire.GetPlanResponseObject, error) {
	only := deref(req.Params.Plugin)
	if only != "" {
		if _, _, err := s.o.Plugins.Instance(only); err != nil {
			return nil, err
		}
	}
	plan, err := s.o.Lifecycle.Preview(ctx, only)
	if err != nil {
		return nil, err
	}
	return wire.GetPlan200JSONResponse(s.wirePlan(plan)), nil
}
