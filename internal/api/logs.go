package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// maxTail is how many lines a reader may ask for at once.
const maxTail = 100_000

func jobField(id jobs.ID) zap.Field { return zap.String("job", string(id)) }
func errField(err error) zap.Field  { return zap.Error(err) }

// lineSource is a cursor over log lines. now returns what is there already,
// next waits for more; io.EOF when nothing can follow.
type lineSource interface {
	now(ctx context.Context, tail int) ([]wire.LogRecord, error)
	next(ctx context.Context) ([]wire.LogRecord, error)
	close()
}

// logAnswer is log lines as text or NDJSON, with follow until the client leaves.
type logAnswer struct {
	s      *server
	ctx    context.Context //nolint:containedctx // the request's; the generated Visit methods take none
	src    lineSource
	tail   int
	follow bool
}

func (a logAnswer) VisitGetJobLogsResponse(w http.ResponseWriter) error    { return a.send(w) }
func (a logAnswer) VisitGetPluginLogsResponse(w http.ResponseWriter) error { return a.send(w) }

func (a logAnswer) send(w http.ResponseWriter) error {
	defer a.src.close()
	if a.follow {
		release, err := a.s.place(principalOf(a.ctx))
		if err != nil {
			return err
		}
		defer release()
	}
	lines, err := a.src.now(a.ctx, a.tail)
	if err != nil {
		return err
	}
	asJSON := strings.Contains(requestOf(a.ctx).Header.Get("Accept"), "application/x-ndjson")
	kind := "text/plain; charset=utf-8"
	if asJSON {
		kind = "application/x-ndjson"
	}
	ownDeadlines(w)
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := lineWriter{w: bufio.NewWriterSize(w, 32<<10), rc: http.NewResponseController(w), timeout: a.s.o.WriteTimeout, asJSON: asJSON}
	defer func() { _ = out.rc.SetWriteDeadline(time.Time{}) }()
	if !out.write(lines) || !a.follow {
		return nil
	}
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	stop := context.AfterFunc(a.s.o.StreamsDone, cancel)
	defer stop()
	for {
		lines, err := a.src.next(ctx)
		if len(lines) > 0 && !out.write(lines) {
			return nil
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				a.s.log.Warn("cannot follow a log", zap.String("request", requestID(a.ctx)), zap.Error(err))
			}
			return nil // the status has long been sent; the end of the body is all that can be said
		}
	}
}

type lineWriter struct {
	w       *bufio.Writer
	rc      *http.ResponseController
	timeout time.Duration
	asJSON  bool
}

// write sends lines and flushes; false when the reader is gone.
func (o lineWriter) write(lines []wire.LogRecord) bool {
	_ = o.rc.SetWriteDeadline(time.Now().Add(o.timeout)) // where it cannot be had, the request's context ends the wait
	for _, l := range lines {
		if o.asJSON {
			data, err := json.Marshal(l)
			if err != nil {
				return false
			}
			_, _ = o.w.Write(append(data, '\n')) // an error stays in the writer until Flush
			continue
		}
		_, _ = o.w.WriteString(l.Time.UTC().Format("2006-01-02T15:04:05.000Z") + " " + l.Level + " ")
		if l.Logger != "" {
			_, _ = o.w.WriteString(l.Logger + ": ")
		}
		_, _ = o.w.WriteString(l.Message + "\n")
	}
	return o.w.Flush() == nil && o.rc.Flush() == nil
}

func tailOf(tail *int) (int, error) {
	if tail == nil {
		return maxTail, nil
	}
	if *tail < 0 || *tail > maxTail {
		return 0, badParam("tail", "must be from 0 to 100000")
	}
	return *tail, nil
}

// GetJobLogs is GET /v1/jobs/{id}/logs.
func (s *server) GetJobLogs(ctx context.Context, req wire.GetJobLogsRequestObject) (wire.GetJobLogsResponseObject, error) {
	tail, err := tailOf(req.Params.Tail)
	if err != nil {
		return nil, err
	}
	log, err := s.o.Jobs.Log(ctx, jobs.ID(req.Id), 0)
	if err != nil {
		return nil, err
	}
	return logAnswer{s: s, ctx: ctx, src: &jobLines{log: log}, tail: tail, follow: deref(req.Params.Follow)}, nil
}

// jobLines are the log records of a job.
type jobLines struct {
	log    JobLog
	cursor uint64
}

func (j *jobLines) now(ctx context.Context, tail int) ([]wire.LogRecord, error) {
	newest := j.log.Newest()
	var out []wire.LogRecord
	for j.cursor < newest {
		line, ok, err := j.one(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, line)
			if len(out) > 2*tail+64 { // keeps memory near the tail, not the log
				out = append(out[:0:0], out[len(out)-tail:]...)
			}
		}
	}
	return out[max(len(out)-tail, 0):], nil
}

func (j *jobLines) next(ctx context.Context) ([]wire.LogRecord, error) {
	for {
		line, ok, err := j.one(ctx)
		if err != nil {
			return nil, err
		}
		if ok {
			return []wire.LogRecord{line}, nil
		}
	}
}

// one reads a record; ok is false when it is no line of the log.
func (j *jobLines) one(ctx context.Context) (line wire.LogRecord, ok bool, err error) {
	rec, err := j.log.Next(ctx)
	if err != nil {
		return line, false, err
	}
	j.cursor = rec.N
	if rec.Kind != joblog.KindLog || json.Unmarshal(rec.Data, &line) != nil {
		return line, false, nil
	}
	return line, true, nil
}

func (j *jobLines) close() { _ = j.log.Close() }

// GetPluginLogs is GET /v1/plugins/{name}/logs.
func (s *server) GetPluginLogs(ctx context.Context, req wire.GetPluginLogsRequestObject) (wire.GetPluginLogsResponseObject, error) {
	tail, err := tailOf(req.Params.Tail)
	if err != nil {
		return nil, err
	}
	if _, _, err := s.o.Plugins.Instance(req.Name); err != nil {
		return nil, err
	}
	log, ok := s.o.Workers.Logs(req.Name)
	if !ok { // one that never ran has an empty log, not none
		return nil, &requestError{Code: codeShuttingDown, RetryAfter: time.Second}
	}
	return logAnswer{s: s, ctx: ctx, src: &workerLines{log: log}, tail: tail, follow: deref(req.Params.Follow)}, nil
}

// workerLines are the lines of a worker, in and outside of jobs.
type workerLines struct {
	log    supervisor.LogSource
	cursor uint64
}

func (l *workerLines) now(_ context.Context, tail int) ([]wire.LogRecord, error) {
	lines := l.log.Tail(max(tail, 1)) // one at least, to know where to go on
	if n := len(lines); n > 0 {
		l.cursor = lines[n-1].Seq
	}
	return wireLines(lines[max(len(lines)-tail, 0):]), nil
}

func (l *workerLines) next(ctx context.Context) ([]wire.LogRecord, error) {
	lines, _, err := l.log.Next(ctx, l.cursor)
	if n := len(lines); n > 0 {
		l.cursor = lines[n-1].Seq
	}
	return wireLines(lines), err
}

func (l *workerLines) close() {}

func wireLines(lines []supervisor.LogLine) []wire.LogRecord {
	out := make([]wire.LogRecord, 0, len(lines))
	for _, l := range lines {
		level := l.Level
		if level == "" {
			level = "info"
		}
		out = append(out, wire.LogRecord{Time: l.At.UTC(), Level: level, Stream: l.Stream, Job: l.Call, Message: l.Text})
	}
	return out
}
