package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
)

// inlineResult is the largest JSON result that a single job carries in itself.
const inlineResult = 64 << 10

// maxKey is the longest idempotency key, in bytes.
const maxKey = 255

// headerKey reads the header Idempotency-Key. An empty one is a mistake of the
// caller that would cost it the promise it asked for.
func headerKey(key *string) (string, error) {
	if key != nil && (*key == "" || len(*key) > maxKey) {
		return "", badParam("Idempotency-Key", fmt.Sprintf("must have 1 to %d bytes", maxKey))
	}
	return deref(key), nil
}

// submission is what the three ways to submit have in common.
type submission struct {
	id, key string
	req     wire.JobRequest
	pointer string // where req stands in the body, for errors
	stage   *jobs.Stage
}

// build checks one submission against its plugin and fills in what the plugin
// says where the submitter said nothing.
func (s *server) build(ctx context.Context, in submission) (jobs.Submission, error) {
	_, man, err := s.runnable(in.req.Plugin, in.pointer)
	if err != nil {
		return jobs.Submission{}, err
	}
	if limit := s.o.Limits().Job; int64(len(in.req.Args)+len(in.req.Kwargs)) > limit {
		return jobs.Submission{}, &requestError{Code: codeBodyTooLarge, Detail: fmt.Sprintf("The arguments of a job may have %d bytes.", limit),
			Fields: []wire.FieldError{{Pointer: in.pointer + "/args", Message: "is too large, together with kwargs"}}}
	}
	spec := jobs.Spec{
		Instance: in.req.Plugin, Args: in.req.Args, Kwargs: in.req.Kwargs, Task: in.req.Task, Method: in.req.Method, Stream: in.req.Stream, Priority: in.req.Priority,
		Labels: in.req.Labels, MaxAttempts: in.req.MaxAttempts, Held: in.req.Hold,
		RunOnDepFail: in.req.OnDependencyFailure == wire.JobRequestOnDependencyFailureRun,
	}
	for _, d := range in.req.DependsOn {
		spec.DependsOn = append(spec.DependsOn, jobs.ID(d))
	}
	for _, d := range []struct {
		name     string
		text     string
		fallback time.Duration
		to       *time.Duration
	}{
		{"queue_timeout", in.req.QueueTimeout, 0, &spec.QueueTimeout},
		{"run_timeout", in.req.RunTimeout, man.Timeouts.Run, &spec.RunTimeout},
		{"cancel_grace", in.req.CancelGrace, man.Timeouts.CancelGrace, &spec.CancelGrace},
		{"interrupt_grace", in.req.InterruptGrace, man.Timeouts.InterruptGrace, &spec.InterruptGrace},
	} {
		*d.to = d.fallback
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil { // the pattern lets only what overflows come here
			return jobs.Submission{}, badField(in.pointer+"/"+d.name, "is longer than any duration may be")
		}
		*d.to = v
	}
	if spec.MaxAttempts == 0 {
		spec.MaxAttempts = man.MaxAttempts
	}
	return jobs.Submission{ID: jobs.ID(in.id), IdempotencyKey: in.key, Spec: spec, Submitter: principalOf(ctx).Name, Stage: in.stage}, nil
}

// runnable finds the instance that a submission names.
func (s *server) runnable(name, pointer string) (plugins.Instance, plugins.Manifest, error) {
	inst, man, err := s.o.Plugins.Lookup(name)
	var notFound *plugins.NotFoundError
	if errors.As(err, &notFound) {
		fe := wire.FieldError{Pointer: pointer + "/plugin", Message: "names no plugin or instance", Suggestion: notFound.Nearest}
		if notFound.Nearest != "" {
			fe.Message += fmt.Sprintf("; did you mean %q?", notFound.Nearest)
		}
		return inst, man, &requestError{Code: codeUnknownPlugin, Fields: []wire.FieldError{fe}, Cause: err}
	}
	if err != nil {
		return inst, man, err
	}
	if !inst.Enabled {
		return inst, man, &requestError{Code: codePluginDisabled, Fields: []wire.FieldError{{Pointer: pointer + "/plugin", Message: "is disabled"}}}
	}
	return inst, man, nil
}

func badField(pointer, message string) *requestError {
	return &requestError{Code: codeInvalidBody, Fields: []wire.FieldError{{Pointer: pointer, Message: message}}}
}

// submit stores submissions, all or none.
func (s *server) submit(ctx context.Context, subs ...jobs.Submission) ([]jobs.Submitted, error) {
	done, err := s.o.Jobs.Submit(ctx, subs)
	if err != nil {
		return nil, err
	}
	if len(done) != len(subs) {
		return nil, fmt.Errorf("cannot submit: the queue answered %d of %d submissions", len(done), len(subs))
	}
	return done, nil
}

// SubmitJob is POST /v1/jobs.
func (s *server) SubmitJob(ctx context.Context, req wire.SubmitJobRequestObject) (wire.SubmitJobResponseObject, error) {
	key, err := headerKey(req.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	in := submission{key: key}
	if req.MultipartBody != nil {
		if in.stage, err = s.receive(ctx, req.MultipartBody, "submitJob", &in.req); err != nil {
			return nil, err
		}
		defer s.settle(ctx, in.stage) // also of one that never got as far as the queue
	} else {
		in.req = *req.JSONBody
	}
	a, err := s.submitOne(ctx, in, req.Params.Wait, req.Params.Prefer)
	if err != nil {
		return nil, err
	}
	if a.known {
		return wire.SubmitJob200JSONResponse{JobKnownJSONResponse: a.jobKnown()}, nil
	}
	return wire.SubmitJob202JSONResponse{JobAcceptedJSONResponse: jobAccepted(a.job)}, nil
}

// PutJob is PUT /v1/jobs/{id}.
func (s *server) PutJob(ctx context.Context, req wire.PutJobRequestObject) (wire.PutJobResponseObject, error) {
	a, err := s.submitOne(ctx, submission{id: req.Id, req: *req.Body}, req.Params.Wait, req.Params.Prefer)
	if err != nil {
		return nil, err
	}
	if a.known {
		return wire.PutJob200JSONResponse{JobKnownJSONResponse: a.jobKnown()}, nil
	}
	return wire.PutJob202JSONResponse{JobAcceptedJSONResponse: jobAccepted(a.job)}, nil
}

// answer is a submitted job and whether it is more than accepted: known before,
// or waited for and final.
type answer struct {
	job   wire.Job
	known bool
}

func (a answer) jobKnown() wire.JobKnownJSONResponse {
	acc := jobAccepted(a.job)
	return wire.JobKnownJSONResponse{Body: acc.Body, Headers: wire.JobKnownResponseHeaders(acc.Headers)}
}

func jobAccepted(j wire.Job) wire.JobAcceptedJSONResponse {
	return wire.JobAcceptedJSONResponse{Body: j, Headers: wire.JobAcceptedResponseHeaders{Location: "/v1/jobs/" + j.Id, ETag: etag(j.Revision)}}
}

func jobAnswer(j wire.Job) wire.JobJSONResponse {
	return wire.JobJSONResponse{Body: j, Headers: wire.JobResponseHeaders{ETag: etag(j.Revision)}}
}

func (s *server) submitOne(ctx context.Context, in submission, wait, prefer *string) (answer, error) {
	hold, err := s.waitTime(wait, prefer)
	if err != nil {
		return answer{}, err
	}
	job, created, err := s.submitted(ctx, in)
	if err != nil {
		return answer{}, err
	}
	if hold == 0 {
		return answer{job: wireJob(job), known: !created}, nil
	}
	job, err = s.await(ctx, job, hold)
	if err != nil {
		return answer{}, err
	}
	full, err := s.withResult(ctx, wireJob(job), job)
	return answer{job: full, known: !created || job.Status.Final()}, err
}

// submitted stores one submission and settles the files that came with it.
func (s *server) submitted(ctx context.Context, in submission) (jobs.Job, bool, error) {
	defer s.settle(ctx, in.stage)
	sub, err := s.build(ctx, in)
	if err != nil {
		return jobs.Job{}, false, err
	}
	done, err := s.submit(ctx, sub)
	if err != nil {
		return jobs.Job{}, false, err
	}
	return done[0].Job, done[0].Created, nil
}

// SubmitBatch is POST /v1/jobs:batch.
func (s *server) SubmitBatch(ctx context.Context, req wire.SubmitBatchRequestObject) (wire.SubmitBatchResponseObject, error) {
	subs := make([]jobs.Submission, 0, len(req.Body.Jobs))
	for i, it := range req.Body.Jobs {
		sub, err := s.build(ctx, submission{id: it.Id, key: it.IdempotencyKey, pointer: "/jobs/" + strconv.Itoa(i), req: wire.JobRequest{
			Plugin: it.Plugin, Args: it.Args, Kwargs: it.Kwargs, Task: it.Task, Method: it.Method, Stream: it.Stream, Priority: it.Priority, Labels: it.Labels,
			QueueTimeout: it.QueueTimeout, RunTimeout: it.RunTimeout, CancelGrace: it.CancelGrace, InterruptGrace: it.InterruptGrace,
			MaxAttempts: it.MaxAttempts, Hold: it.Hold, DependsOn: it.DependsOn,
			OnDependencyFailure: wire.JobRequestOnDependencyFailure(it.OnDependencyFailure),
		}})
		if err != nil {
			return nil, err
		}
		subs = append(subs, sub)
	}
	done, err := s.submit(ctx, subs...)
	if err != nil {
		return nil, err
	}
	out := wire.BatchAccepted{Jobs: make([]wire.BatchJob, len(done))}
	for i, d := range done {
		out.Jobs[i] = wire.BatchJob{Id: string(d.Job.ID), Created: d.Created, Status: wire.JobStatus(d.Job.Status)}
	}
	return wire.SubmitBatch202JSONResponse(out), nil
}

// waitTime reads ?wait= or, when that is missing, Prefer: wait=SECONDS.
func (s *server) waitTime(wait, prefer *string) (time.Duration, error) {
	limit := s.o.Limits().Wait
	if wait != nil {
		d, err := time.ParseDuration(*wait)
		if err != nil || d < 0 {
			return 0, badParam("wait", "must be a duration like 30s")
		}
		return min(d, limit), nil
	}
	for _, part := range strings.FieldsFunc(deref(prefer), func(r rune) bool { return r == ',' || r == ';' }) {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue // preferences that are not known are to be ignored (RFC 7240)
		}
		if n, err := strconv.ParseUint(strings.Trim(value, `" `), 10, 31); err == nil {
			return min(time.Duration(n)*time.Second, limit), nil
		}
	}
	return 0, nil
}

// await holds until the job is final, at most for d (d < 0: as long as the
// client stays). A job that is not final by then is no error.
func (s *server) await(ctx context.Context, job jobs.Job, d time.Duration) (jobs.Job, error) {
	wctx, cancel := ctx, func() {}
	if d >= 0 {
		wctx, cancel = context.WithTimeout(ctx, d)
	}
	defer cancel()
	stop := context.AfterFunc(s.o.StreamsDone, cancel) // the daemon is going: answer with what is known
	defer stop()
	got, err := s.o.Jobs.Wait(wctx, job.ID)
	switch {
	case err == nil:
		return got, nil
	case ctx.Err() != nil:
		return job, fmt.Errorf("cannot wait for job %s: %w", job.ID, context.Cause(ctx))
	case wctx.Err() != nil:
		if got.ID == "" { // the wait ended before it could look
			return s.o.Jobs.Get(ctx, job.ID)
		}
		return got, nil
	default:
		return job, err
	}
}

// withResult puts a small JSON result into the job that is answered with.
func (s *server) withResult(ctx context.Context, out wire.Job, j jobs.Job) (wire.Job, error) {
	r := j.Result
	if r == nil || !j.Status.Final() || r.Size > inlineResult || r.ContentType != "" && r.ContentType != "application/json" {
		return out, nil
	}
	body, _, err := s.o.Jobs.Result(ctx, j.ID)
	if errors.Is(err, jobs.ErrNotFound) { // retention was faster
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("cannot read the result of job %s: %w", j.ID, err)
	}
	defer func() { _ = body.Close() }()
	data, err := io.ReadAll(io.LimitReader(body, inlineResult+1))
	if err != nil {
		return out, fmt.Errorf("cannot read the result of job %s: %w", j.ID, err)
	}
	if len(data) <= inlineResult && json.Valid(data) {
		out.Result.Value = data
	}
	return out, nil
}

func etag(revision int64) string { return `"` + strconv.FormatInt(revision, 10) + `"` }
