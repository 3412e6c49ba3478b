package daemontest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// Session is the daemon as one test uses it: every call fails the test when the
// daemon does not answer as it should. The wishes of a test that are not a plain
// success go through API or Raw. For one test and the goroutines it waits for,
// which must not use the methods that fail the test.
type Session struct {
	API *client.API
	D   *Daemon
	t   testing.TB
	ctx context.Context
}

// Session connects over the Unix socket.
func (d *Daemon) Session(t testing.TB) *Session {
	t.Helper()
	return d.session(t, client.Options{Socket: d.Socket})
}

// TCP connects over TCP with a token, "" for none.
func (d *Daemon) TCP(t testing.TB, token string) *Session {
	t.Helper()
	return d.session(t, client.Options{BaseURL: "http://" + d.addr, Token: token})
}

func (d *Daemon) session(t testing.TB, o client.Options) *Session {
	t.Helper()
	api, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() { cancel(); api.CloseIdle() })
	return &Session{API: api, D: d, t: t, ctx: ctx}
}

// Ctx ends with the test, or when it takes far too long.
func (s *Session) Ctx() context.Context { return s.ctx }

// AdminToken is the token that the daemon made at its first start.
func (d *Daemon) AdminToken(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.State, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// With changes a submit.
type With func(*wire.JobRequest)

// Job is a request for one job; kwargs is an object, nil for none.
func Job(plugin string, kwargs map[string]any, with ...With) wire.JobRequest {
	req := wire.JobRequest{Plugin: plugin}
	if kwargs != nil {
		b, err := json.Marshal(kwargs)
		if err != nil { // only what a test wrote by hand comes here
			panic(err)
		}
		req.Kwargs = b
	}
	for _, f := range with {
		f(&req)
	}
	return req
}

// Op is a request for one job of the plugin lab; pairs are further kwargs.
func Op(op string, pairs ...any) wire.JobRequest { return OpOf("lab", op, pairs...) }

// OpOf is Op for another instance of lab.
func OpOf(plugin, op string, pairs ...any) wire.JobRequest {
	kwargs := map[string]any{"op": op}
	for i := 0; i+1 < len(pairs); i += 2 {
		kwargs[pairs[i].(string)] = pairs[i+1]
	}
	return Job(plugin, kwargs)
}

// Must fails the test when a call was no success.
func Must[T any](t testing.TB) func(*http.Response, error) T {
	return func(resp *http.Response, err error) T {
		t.Helper()
		v, err := client.Decode[T](resp, err)
		if err != nil {
			t.Fatalf("%+v", explain(err))
		}
		return v
	}
}

func explain(err error) error {
	var p *client.ProblemError
	if errors.As(err, &p) {
		return fmt.Errorf("%d %s: %w (%+v)", p.Status, p.Code, err, p.Errors)
	}
	return err
}

// Problem fails the test unless a call was answered with a problem of this
// status and code; an empty code means any.
func Problem(t testing.TB, status int, code string) func(*http.Response, error) *client.ProblemError {
	return func(resp *http.Response, err error) *client.ProblemError {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		err = client.Check(resp)
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			t.Fatalf("the answer was %s, not a problem %d %s: %.500s", resp.Status, status, code, b)
		}
		var p *client.ProblemError
		if !errors.As(err, &p) {
			t.Fatal(err)
		}
		if p.Status != status || code != "" && p.Code != code {
			t.Fatalf("the problem is %d %s, want %d %s: %v", p.Status, p.Code, status, code, err)
		}
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			t.Errorf("the problem came as %q", ct)
		}
		if p.Title == "" || p.Next == "" || p.Type != "urn:cjmd:problem:"+p.Code {
			t.Errorf("the problem lacks its sentence, its next step or its type: %+v", p.Problem)
		}
		return p
	}
}

// Submit submits a job.
func (s *Session) Submit(req wire.JobRequest) wire.Job {
	s.t.Helper()
	return Must[wire.Job](s.t)(s.API.SubmitJob(s.ctx, nil, req))
}

// Get reads a job.
func (s *Session) Get(id string) wire.Job {
	s.t.Helper()
	return Must[wire.Job](s.t)(s.API.GetJob(s.ctx, id, nil))
}

// Wait returns the job once it is final.
func (s *Session) Wait(id string) wire.Job {
	s.t.Helper()
	wait := wire.Wait("60s")
	job := Must[wire.Job](s.t)(s.API.GetJob(s.ctx, id, &wire.GetJobParams{Wait: &wait}))
	if !Final(job) {
		s.t.Fatalf("job %s is still %s (%s), block %+v, error %+v", id, job.Status, job.Phase, job.Block, job.LastError)
	}
	return job
}

// Final reports whether a job has ended.
func Final(j wire.Job) bool {
	return j.Status == wire.JobStatusCompleted || j.Status == wire.JobStatusFailed || j.Status == wire.JobStatusCancelled
}

// Run submits a job and returns it once it is final.
func (s *Session) Run(req wire.JobRequest) wire.Job {
	s.t.Helper()
	return s.Wait(s.Submit(req).Id)
}

// Completed is Run for a job that must complete; its result goes into to, unless
// that is nil.
func (s *Session) Completed(req wire.JobRequest, to any) wire.Job {
	s.t.Helper()
	job := s.Run(req)
	s.IsCompleted(job)
	if to != nil {
		s.Result(job.Id, to)
	}
	return job
}

// IsCompleted fails the test unless the job completed.
func (s *Session) IsCompleted(job wire.Job) {
	s.t.Helper()
	if job.Status != wire.JobStatusCompleted {
		s.t.Fatalf("job %s is %s (%s), want completed; error %+v", job.Id, job.Status, job.Phase, job.Error)
	}
}

// Failed is Run for a job that must fail with this category.
func (s *Session) Failed(req wire.JobRequest, category wire.JobErrorCategory) wire.Job {
	s.t.Helper()
	job := s.Run(req)
	s.IsFailed(job, category)
	return job
}

// IsFailed fails the test unless the job failed with this category.
func (s *Session) IsFailed(job wire.Job, category wire.JobErrorCategory) {
	s.t.Helper()
	if job.Status != wire.JobStatusFailed || job.Error == nil || job.Error.Category != category {
		s.t.Fatalf("job %s is %s with error %+v, want failed with %s", job.Id, job.Status, job.Error, category)
	}
}

// Result reads a job's result.
func (s *Session) Result(id string, to any) {
	s.t.Helper()
	raw := Must[json.RawMessage](s.t)(s.API.GetResult(s.ctx, id, nil))
	if err := json.Unmarshal(raw, to); err != nil {
		s.t.Fatalf("the result is %.200s: %v", raw, err)
	}
}

// Cancel asks for the end of a job.
func (s *Session) Cancel(id string) wire.Job {
	s.t.Helper()
	return Must[wire.Job](s.t)(s.API.CancelJob(s.ctx, id, wire.CancelRequest{Reason: "a test wants it"}))
}

// Instance makes an instance of lab.
func (s *Session) Instance(id string, config map[string]any) string {
	s.t.Helper()
	req := wire.InstanceRequest{Id: id}
	if config != nil {
		b, err := json.Marshal(config)
		if err != nil {
			s.t.Fatal(err)
		}
		req.Config = b
	}
	return s.InstanceOf("lab", req)
}

// InstanceOf makes an instance of any plugin.
func (s *Session) InstanceOf(plugin string, req wire.InstanceRequest) string {
	s.t.Helper()
	return Must[wire.Instance](s.t)(s.API.CreateInstance(s.ctx, plugin, req)).Id
}

// Worker is the worker of an instance.
func (s *Session) Worker(id string) wire.Worker {
	s.t.Helper()
	return Must[wire.Worker](s.t)(s.API.GetWorker(s.ctx, id))
}

// Raw sends a request as it is written, with the content type of JSON where
// there is a body.
func (s *Session) Raw(method, path, body string, header ...string) (*http.Response, error) {
	h := http.Header{}
	var r io.Reader
	if body != "" {
		r = bytes.NewReader([]byte(body))
		h.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return s.API.Do(s.ctx, method, path, r, h)
}

// Gate is a file that an operation of lab waits for.
type Gate struct {
	t    testing.TB
	Path string
}

// Gate makes a closed gate.
func (s *Session) Gate() Gate {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.D.Dir, "gate-")
	if err != nil {
		s.t.Fatal(err)
	}
	return Gate{t: s.t, Path: filepath.Join(dir, "open")}
}

// Open lets go on what waits for the gate.
func (g Gate) Open() {
	g.t.Helper()
	if err := os.WriteFile(g.Path, nil, 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// Run is one run that lab noted.
type Run struct {
	Job  string
	What string
	PID  int
	Op   string
}

// Runs are the runs so far, oldest first.
func (d *Daemon) Runs(t testing.TB) []Run {
	t.Helper()
	b, err := os.ReadFile(d.runsPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []Run
	for line := range bytes.Lines(b) {
		var r Run
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("the notes of runs have a line %q: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

// RunsOf counts the runs of a job.
func (d *Daemon) RunsOf(t testing.TB, id string) int {
	t.Helper()
	n := 0
	for _, r := range d.Runs(t) {
		if r.Job == id && r.What == "run" {
			n++
		}
	}
	return n
}

// JobPath is the address of a job and of what lies below it.
func JobPath(id string, below ...string) string {
	return "/v1/jobs/" + url.PathEscape(id) + strings.Join(append([]string{""}, below...), "/")
}

// Text reads a page of text; header like Raw's.
func (s *Session) Text(path string, header ...string) string {
	s.t.Helper()
	resp, err := s.Raw(http.MethodGet, path, "", header...)
	if err == nil {
		err = client.Check(resp)
	}
	if err != nil {
		s.t.Fatal(explain(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}
