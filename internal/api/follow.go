package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime/multipart"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
)

// JobLog is a cursor over one job's records. Next returns io.EOF behind the
// final one; *joblog.Reader is one.
type JobLog interface {
	Next(ctx context.Context) (joblog.Record, error)
	// Newest is the number of the newest record now.
	Newest() uint64
	Close() error
}

// queue is jobs.Queue with a log that can be replaced in tests.
type queue struct{ *jobs.Queue }

// NewJobs joins the queue to the API.
func NewJobs(q *jobs.Queue) Jobs { return queue{q} }

// Log follows a job's log.
func (q queue) Log(ctx context.Context, id jobs.ID, after uint64) (JobLog, error) {
	r, err := q.Queue.Log(ctx, id, after)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// position reads where a reader stopped. given is false when it does not say.
func position(after, lastEventID *string) (n uint64, given bool, err error) {
	text := after
	if text == nil {
		text = lastEventID
	}
	if text == nil || *text == "" {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(*text, 10, 63)
	if err != nil {
		return 0, false, &requestError{Code: codeBadEventID, Cause: err}
	}
	return n, true, nil
}

// StreamEvents is GET /v1/events.
func (s *server) StreamEvents(ctx context.Context, req wire.StreamEventsRequestObject) (wire.StreamEventsResponseObject, error) {
	p := req.Params
	n, given, err := position(p.After, p.LastEventID)
	if err != nil {
		return nil, err
	}
	if !given {
		n = uint64(s.o.Feed.Last())
	}
	f := events.Filter{Kinds: p.Kind, Job: deref(p.Job), Instance: deref(p.Plugin)}
	st := eventStream{s: s, ctx: ctx, who: principalOf(ctx), firstID: strconv.FormatUint(n, 10),
		open: func(context.Context) (eventSource, error) {
			return &journalSource{sub: s.o.Feed.Subscribe(f, events.Seq(n))}, nil
		}}
	if deref(p.Samples) {
		st.side = &samples{m: s.o.Machine}
	}
	return st, nil
}

// journalSource is the journal as a stream.
type journalSource struct{ sub *events.Subscription }

func (j *journalSource) next(ctx context.Context) (frame, error) {
	ev, err := j.sub.Next(ctx)
	var reset *events.ResetError
	if errors.As(err, &reset) {
		return resetFrame(uint64(j.sub.Cursor()), uint64(reset.Oldest), uint64(reset.Newest)), nil
	}
	if err != nil {
		return frame{}, err
	}
	return frame{id: strconv.AppendUint(nil, uint64(ev.Seq), 10), kind: string(ev.Kind), data: journalData(ev)}, nil
}

// end: only the daemon's end ends the journal.
func (j *journalSource) end(context.Context) wire.StreamEnd {
	return wire.StreamEnd{Reason: wire.StreamEndReasonShutdown}
}

func (j *journalSource) close() { j.sub.Close() }

func resetFrame(cursor, oldest, newest uint64) frame {
	return frame{id: strconv.AppendUint(nil, cursor, 10), kind: "stream.reset", data: fmt.Appendf(nil, `{"oldest":%d,"newest":%d}`, oldest, newest)}
}

// journalData writes a wire.JournalEvent, many thousand times a second.
func journalData(ev events.Event) []byte {
	b := make([]byte, 0, 128+len(ev.Data))
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, uint64(ev.Seq), 10)
	b = append(b, `,"at":`...)
	b = appendTime(b, ev.At)
	b = append(b, `,"kind":`...)
	b = appendText(b, string(ev.Kind))
	if ev.Job != "" {
		b = append(b, `,"job":`...)
		b = appendText(b, ev.Job)
	}
	if ev.Instance != "" {
		b = append(b, `,"plugin":`...)
		b = appendText(b, ev.Instance)
	}
	b = append(b, `,"data":`...)
	if len(ev.Data) == 0 {
		b = append(b, "{}"...)
	}
	b = append(b, oneLine(ev.Data)...)
	return append(b, '}')
}

func appendTime(b []byte, t time.Time) []byte {
	b = append(b, '"')
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

func appendText(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			if q, err := json.Marshal(s); err == nil {
				return append(b, q...)
			}
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// oneLine keeps a line break inside data from ending an event early.
func oneLine(data []byte) []byte {
	if !bytes.ContainsAny(data, "\r\n") {
		return data
	}
	var out bytes.Buffer
	if json.Compact(&out, data) != nil { // no JSON at all: whoever wrote it, no line may come of it
		return bytes.Map(func(r rune) rune {
			if r == '\r' || r == '\n' {
				return ' '
			}
			return r
		}, data)
	}
	return out.Bytes()
}

// samples are the monitor's readings as live events.
type samples struct {
	m    Machine
	last time.Time
}

func (sa *samples) wait() <-chan struct{} { return sa.m.Watch() }

func (sa *samples) take() (frame, bool) {
	snap, fresh := sa.m.Latest()
	if snap.At.Equal(sa.last) {
		return frame{}, false
	}
	sa.last = snap.At
	data, err := json.Marshal(wireSystem(snap, fresh))
	return frame{kind: "system.sample", data: data}, err == nil
}

// logSource is a job's log as a stream.
type logSource struct {
	s   *server
	id  jobs.ID
	log JobLog
	all bool // every record, not the chunks alone
}

func (l *logSource) next(ctx context.Context) (frame, error) {
	for {
		rec, err := l.log.Next(ctx)
		var reset *joblog.ResetError
		if errors.As(err, &reset) {
			return resetFrame(max(reset.Oldest, 1)-1, reset.Oldest, reset.Newest), nil
		}
		if err != nil {
			return frame{}, err
		}
		if l.all || inStream(rec.Kind) {
			return frame{id: strconv.AppendUint(nil, rec.N, 10), kind: rec.Kind, data: recordData(rec)}, nil
		}
	}
}

// inStream selects what a reader of chunks has to know: the chunks, where an
// attempt begins, what is lost, and how it ended.
func inStream(kind string) bool {
	switch kind {
	case joblog.KindChunk, joblog.KindGap, string(events.JobStarted), string(events.JobCompleted), string(events.JobFailed), string(events.JobCancelled):
		return true
	}
	return false
}

// recordData is a record as it goes over the wire: chunks, gaps and log lines as
// they are, everything else with its time.
func recordData(rec joblog.Record) []byte {
	switch rec.Kind {
	case joblog.KindChunk, joblog.KindGap, joblog.KindLog:
		return oneLine(rec.Data)
	}
	data := oneLine(rec.Data)
	b := make([]byte, 0, len(data)+48)
	b = append(b, `{"at":`...)
	b = appendTime(b, rec.At)
	if len(data) > 2 {
		b = append(b, ',')
		return append(b, data[1:]...)
	}
	return append(b, '}')
}

func (l *logSource) end(ctx context.Context) wire.StreamEnd {
	j, err := l.s.o.Jobs.Get(ctx, l.id)
	if err == nil && !j.Status.Final() { // the log was closed under the reader
		return wire.StreamEnd{Reason: wire.StreamEndReasonShutdown}
	}
	return wire.StreamEnd{Reason: wire.StreamEndReasonFinal, Status: wire.JobStatus(j.Status)}
}

func (l *logSource) close() { _ = l.log.Close() }

// follow is the stream of one job. When cancel is set, a client that goes away
// before the end cancels the job.
func (s *server) follow(ctx context.Context, id jobs.ID, after uint64, all, cancel bool) eventStream {
	who := principalOf(ctx)
	st := eventStream{s: s, ctx: ctx, who: who, firstID: strconv.FormatUint(after, 10),
		open: func(ctx context.Context) (eventSource, error) {
			log, err := s.o.Jobs.Log(ctx, id, after)
			if err != nil {
				return nil, err
			}
			return &logSource{s: s, id: id, log: log, all: all}, nil
		}}
	if cancel {
		st.gone = func(ctx context.Context) {
			if _, err := s.o.Jobs.Cancel(ctx, id, who.Name, "the client that followed it went away"); err != nil {
				s.log.Warn("cannot cancel a job whose client went away", jobField(id), errField(err))
			}
		}
	}
	return st
}

// JobEvents is GET /v1/jobs/{id}/events.
func (s *server) JobEvents(ctx context.Context, req wire.JobEventsRequestObject) (wire.JobEventsResponseObject, error) {
	st, err := s.followRequest(ctx, req.Id, req.Params.After, req.Params.LastEventID, string(deref(req.Params.OnDisconnect)), true)
	return st, err
}

// JobStream is GET /v1/jobs/{id}/stream.
func (s *server) JobStream(ctx context.Context, req wire.JobStreamRequestObject) (wire.JobStreamResponseObject, error) {
	st, err := s.followRequest(ctx, req.Id, req.Params.After, req.Params.LastEventID, string(deref(req.Params.OnDisconnect)), false)
	return st, err
}

func (s *server) followRequest(ctx context.Context, id string, after, last *string, onDisconnect string, all bool) (eventStream, error) {
	n, _, err := position(after, last)
	if err != nil {
		return eventStream{}, err
	}
	cancel, err := cancels(onDisconnect, false)
	if err != nil {
		return eventStream{}, err
	}
	if cancel { // going away is a way to cancel
		if !principalOf(ctx).Role.Covers(RoleSubmit) {
			return eventStream{}, &requestError{Code: codeForbidden, Detail: "on_disconnect=cancel needs the role submit."}
		}
		if _, err := s.own(ctx, id); err != nil {
			return eventStream{}, err
		}
	}
	if _, err := s.o.Jobs.Get(ctx, jobs.ID(id)); err != nil {
		return eventStream{}, err
	}
	return s.follow(ctx, jobs.ID(id), n, all, cancel), nil
}

// cancels reads on_disconnect.
func cancels(onDisconnect string, byDefault bool) (bool, error) {
	switch strings.ToLower(onDisconnect) {
	case "":
		return byDefault, nil
	case "cancel":
		return true, nil
	case "keep":
		return false, nil
	}
	return false, badParam("on_disconnect", "must be cancel or keep")
}

// Execute is POST /v1/plugins/{name}/execute.
func (s *server) Execute(ctx context.Context, req wire.ExecuteRequestObject) (wire.ExecuteResponseObject, error) {
	hold := time.Duration(-1)
	if req.Params.Wait != nil {
		var err error
		if hold, err = s.waitTime(req.Params.Wait, nil); err != nil {
			return nil, err
		}
	}
	cancel, err := cancels(string(deref(req.Params.OnDisconnect)), false)
	if err != nil {
		return nil, err
	}
	job, err := s.submitExecute(ctx, execution{req.Name, req.Params.IdempotencyKey, req.JSONBody, req.MultipartBody, "execute", false})
	if err != nil {
		return nil, err
	}
	got, err := s.await(ctx, job, hold)
	if err != nil {
		if cancel && ctx.Err() != nil {
			bctx, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer done()
			s.follow(ctx, job.ID, 0, false, true).gone(bctx)
		}
		return nil, err
	}
	out, err := s.withResult(ctx, wireJob(got), got)
	if err != nil {
		return nil, err
	}
	if !got.Status.Final() {
		return wire.Execute202JSONResponse{JobAcceptedJSONResponse: jobAccepted(out)}, nil
	}
	return wire.Execute200JSONResponse{JobJSONResponse: jobAnswer(out)}, nil
}

// ExecuteStream is POST /v1/plugins/{name}/execute_stream.
func (s *server) ExecuteStream(ctx context.Context, req wire.ExecuteStreamRequestObject) (wire.ExecuteStreamResponseObject, error) {
	cancel, err := cancels(string(deref(req.Params.OnDisconnect)), true)
	if err != nil {
		return nil, err
	}
	// First the place, then the job: one that is refused a stream must not run.
	release, err := s.place(principalOf(ctx))
	if err != nil {
		return nil, err
	}
	job, err := s.submitExecute(ctx, execution{req.Name, req.Params.IdempotencyKey, req.JSONBody, req.MultipartBody, "executeStream", true})
	if err != nil {
		release()
		return nil, err
	}
	st := s.follow(ctx, job.ID, 0, false, cancel)
	st.release = release
	st.location = "/v1/jobs/" + string(job.ID)
	return st, nil
}

// execution is a job for the plugin in the address: the body is JSON or a form.
type execution struct {
	plugin string
	key    *string
	body   *wire.ExecuteRequest
	form   *multipart.Reader
	op     string
	stream bool
}

func (s *server) submitExecute(ctx context.Context, x execution) (jobs.Job, error) {
	name, err := headerKey(x.key)
	if err != nil {
		return jobs.Job{}, err
	}
	b := x.body
	var stage *jobs.Stage
	if x.form != nil {
		b = new(wire.ExecuteRequest)
		if stage, err = s.receive(ctx, x.form, x.op, b); err != nil {
			return jobs.Job{}, err
		}
	}
	job, _, err := s.submitted(ctx, submission{key: name, stage: stage, req: wire.JobRequest{
		Plugin: x.plugin, Args: b.Args, Kwargs: b.Kwargs, Task: b.Task, Method: b.Method, Stream: x.stream, Priority: b.Priority, Labels: b.Labels, MaxAttempts: b.MaxAttempts,
		QueueTimeout: b.QueueTimeout, RunTimeout: b.RunTimeout, CancelGrace: b.CancelGrace, InterruptGrace: b.InterruptGrace,
	}})
	if re := (*requestError)(nil); errors.As(err, &re) && re.Code == codeUnknownPlugin {
		return jobs.Job{}, re.Cause // here the plugin is the address, not the content
	}
	return job, err
}
