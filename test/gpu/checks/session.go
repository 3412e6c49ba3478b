package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/client"
)

// session is one daemon and what the checks know about it.
type session struct {
	o    options
	m    *machine
	card *card // on which everything but the placement of several cards is checked
	size sizes
	dir  string
	api  *client.API
	d    *daemon
	note io.Writer

	stopEvents func()
	mu         sync.Mutex
	events     []event // guarded by mu
}

// event of the daemon's journal.
type event struct {
	At   time.Time
	Kind string
	// Data is what the kind has of its own, beside the members above.
	Data map[string]any
}

func (e event) text(name string) string {
	s, _ := e.Data[name].(string)
	return s
}

// sizes scale with what the card has free, in MiB.
type sizes struct {
	total, budget           float64
	small, big, tiny, extra float64 // resident
	context                 float64 // allowance for a CUDA context and fragmentation
}

func scale(c *card) sizes {
	budget := c.TotalMB - c.UsedMB - 0.04*c.TotalMB
	return sizes{total: c.TotalMB, budget: budget,
		small: math.Floor(0.22 * budget), big: math.Floor(0.6 * budget), tiny: math.Floor(0.08 * budget), extra: math.Floor(0.12 * budget),
		context: math.Floor(math.Min(1024, 0.12*budget))}
}

// open lays out a private directory, starts the daemon in it and follows its events.
func open(ctx context.Context, o options, m *machine, note io.Writer) (_ *session, err error) {
	s := &session{o: o, m: m, note: note}
	for _, c := range m.Cards {
		if s.card == nil || c.TotalMB-c.UsedMB > s.card.TotalMB-s.card.UsedMB {
			s.card = c
		}
	}
	if s.size = scale(s.card); s.size.budget < 0.5*s.card.TotalMB {
		return nil, fmt.Errorf("cannot check: other programs use %.0f of the %.0f MiB of %s; end them first", s.card.UsedMB, s.card.TotalMB, s.card.Name)
	}
	for _, p := range []*string{&s.o.cjmd, &s.o.plugins, &s.o.config} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, fmt.Errorf("cannot find %s: %w", *p, err)
		}
	}
	if s.dir, err = os.MkdirTemp("", "cjmd-gpu-"); err != nil {
		return nil, fmt.Errorf("cannot make a private directory: %w", err)
	}
	if err := s.writePlugins(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if s.api, err = client.New(client.Options{Socket: filepath.Join(s.dir, "s"), UserAgent: "gpu-checks"}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// start starts the daemon and follows its events from now on.
func (s *session) start(ctx context.Context) (err error) {
	if s.d, err = startDaemon(ctx, s.o, s.dir, s.api); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	began := make(chan struct{})
	var once sync.Once
	go func() {
		defer close(done)
		// after=0: what came before the connection is not missed; it is a new journal
		// or one whose old events do no harm.
		_ = s.api.Follow(ctx, client.FollowOptions{Path: "/v1/events", Query: url.Values{"after": {"0"}}}, func(e client.Event) error {
			once.Do(func() { close(began) })
			s.heard(e)
			return nil
		})
	}()
	s.stopEvents = sync.OnceFunc(func() { cancel(); <-done })
	select {
	case <-began:
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("cannot follow the daemon's events: none came")
	}
}

func (s *session) heard(e client.Event) {
	var got event
	var data map[string]any
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	got.Kind, got.Data = e.Kind, data
	if inner, ok := data["data"].(map[string]any); ok {
		for k, v := range inner {
			got.Data[k] = v
		}
	}
	got.At = time.Now()
	if at, err := time.Parse(time.RFC3339Nano, got.text("at")); err == nil {
		got.At = at
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, got)
}

// since lists the events of a kind from a time on.
func (s *session) since(from time.Time, kind string) []event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []event
	for _, e := range s.events {
		if e.Kind == kind && !e.At.Before(from) {
			out = append(out, e)
		}
	}
	return out
}

// close ends the daemon and removes what was written.
func (s *session) close() error {
	if s.stopEvents != nil {
		s.stopEvents()
	}
	var err error
	if s.d != nil {
		err = s.d.stop()
	}
	if s.api != nil {
		s.api.CloseIdle()
	}
	if s.o.keep {
		_, _ = fmt.Fprintln(s.note, "kept:", s.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// carryOut runs one check on a daemon without workers.
func (s *session) carryOut(ctx context.Context, c check) result {
	_, _ = fmt.Fprintln(s.note, "checking:", c.name)
	begin := time.Now()
	r := result{Check: c.name, Expected: c.expected, Verdict: passed}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	err := s.clear(ctx)
	if err == nil {
		r.Seen, err = c.run(s, ctx)
	}
	var none *absentError
	switch {
	case errors.As(err, &none):
		r.Verdict, r.Seen = skipped, none.what
	case err != nil:
		r.Verdict = failed
		r.Seen = err.Error()
	}
	r.Seconds = math.Round(time.Since(begin).Seconds()*10) / 10
	return r
}

// clear unloads every worker and waits until their memory is back.
func (s *session) clear(ctx context.Context) error {
	if err := s.call(ctx, http.MethodPost, "/v1/plugins/unload-all", nil, nil); err != nil {
		return err
	}
	return s.memoryBack(ctx, 20*time.Second)
}

// slack is how much the rest of the machine may move, in MiB.
func (s *session) slack() float64 { return math.Max(96, 0.01*s.card.TotalMB) }

// memoryBack waits until every card is as it was before the checks.
func (s *session) memoryBack(ctx context.Context, patience time.Duration) error {
	return until(ctx, patience, "the memory of the cards to be back", func() (bool, error) {
		for _, c := range s.m.Cards {
			used, err := s.m.usedMB(c)
			if err != nil || used > c.baseline+s.slack() {
				return false, err
			}
		}
		return true, nil
	})
}

func (s *session) call(ctx context.Context, method, path string, body, into any) error {
	return call(ctx, s.api, method, path, body, into)
}

// shortfall, block and job are what the checks read of a job.
type shortfall struct {
	Resource    string  `json:"resource"`
	NeededMB    float64 `json:"needed_mb"`
	AvailableMB float64 `json:"available_mb"`
}

type block struct {
	Code     string      `json:"code"`
	Sentence string      `json:"sentence"`
	Needs    []shortfall `json:"needs"`
	Holders  []string    `json:"holders"`
}

type job struct {
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	Phase      string    `json:"phase"`
	Attempt    int       `json:"attempt"`
	Block      *block    `json:"block"`
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`
	Error      *struct {
		Category  string      `json:"category"`
		Message   string      `json:"message"`
		Shortfall []shortfall `json:"shortfall"`
	} `json:"error"`
	Result *struct {
		Value json.RawMessage `json:"value"`
	} `json:"result"`
}

func (j job) failure() string {
	if j.Error == nil {
		return ""
	}
	return j.Error.Category + ": " + j.Error.Message
}

// facts is what the plugin of the checks answers with.
type facts struct {
	PID       int       `json:"pid"`
	Visible   *string   `json:"visible"`
	Devices   []string  `json:"devices"`
	Reserved  []float64 `json:"reserved"`
	FoundFree []float64 `json:"found_free"`
	Sees      int       `json:"sees"`
}

// submit adds a job; kwargs may be nil.
func (s *session) submit(ctx context.Context, plugin string, priority int, kwargs map[string]any) (string, error) {
	body := map[string]any{"plugin": plugin, "priority": priority}
	if kwargs != nil {
		body["kwargs"] = kwargs
	}
	var j job
	err := s.call(ctx, http.MethodPost, "/v1/jobs", body, &j)
	return j.ID, err
}

func (s *session) job(ctx context.Context, id string) (j job, err error) {
	err = s.call(ctx, http.MethodGet, "/v1/jobs/"+id, nil, &j)
	return j, err
}

// jobWhen waits until a job is as asked.
func (s *session) jobWhen(ctx context.Context, id, what string, patience time.Duration, is func(job) bool) (j job, err error) {
	err = until(ctx, patience, "job "+id+" "+what, func() (bool, error) {
		var err error
		j, err = s.job(ctx, id)
		return err == nil && is(j), err
	})
	if err != nil {
		err = fmt.Errorf("%w; it is %s/%s %s", err, j.Status, j.Phase, j.failure())
	}
	return j, err
}

func (s *session) end(ctx context.Context, id string, patience time.Duration) (job, error) {
	return s.jobWhen(ctx, id, "to end", patience, func(j job) bool { return !j.FinishedAt.IsZero() })
}

func (s *session) executing(ctx context.Context, id string, patience time.Duration) (job, error) {
	j, err := s.jobWhen(ctx, id, "to execute", patience, func(j job) bool { return j.Phase == "executing" || !j.FinishedAt.IsZero() })
	if err == nil && j.Phase != "executing" {
		err = fmt.Errorf("job %s ended as %s before it could be looked at: %s", id, j.Status, j.failure())
	}
	return j, err
}

// work runs one job to its end and returns what it answered.
func (s *session) work(ctx context.Context, plugin string, kwargs map[string]any) (f facts, err error) {
	id, err := s.submit(ctx, plugin, 0, kwargs)
	if err != nil {
		return f, err
	}
	return s.answer(ctx, id)
}

func (s *session) answer(ctx context.Context, id string) (f facts, err error) {
	j, err := s.end(ctx, id, 2*time.Minute)
	if err != nil {
		return f, err
	}
	if j.Status != "completed" {
		return f, fmt.Errorf("job %s is %s: %s", id, j.Status, j.failure())
	}
	if j.Result != nil && len(j.Result.Value) > 0 {
		err = json.Unmarshal(j.Result.Value, &f)
	} else {
		err = s.call(ctx, http.MethodGet, "/v1/jobs/"+id+"/result", nil, &f)
	}
	return f, err
}

// measured is what the ledger attributes to an instance's worker on the card, in MiB.
func (s *session) measured(ctx context.Context, instance string) (mb float64, err error) {
	var state struct {
		Claims []struct {
			Owner      string  `json:"owner"`
			Kind       string  `json:"kind"`
			Device     string  `json:"device"`
			MeasuredMB float64 `json:"measured_mb"`
		} `json:"claims"`
	}
	if err := s.call(ctx, http.MethodGet, "/v1/scheduler", nil, &state); err != nil {
		return 0, err
	}
	for _, c := range state.Claims {
		if c.Owner == instance && c.Kind == "resident" && c.Device == s.card.UUID {
			return c.MeasuredMB, nil
		}
	}
	return 0, nil
}

// pid is the process of an instance's worker.
func (s *session) pid(ctx context.Context, instance string) (int, error) {
	var w struct {
		PID int `json:"pid"`
	}
	err := s.call(ctx, http.MethodGet, "/v1/workers/"+instance, nil, &w)
	if err == nil && w.PID == 0 {
		err = fmt.Errorf("the worker of %s has no process", instance)
	}
	return w.PID, err
}

func within(a, b, share float64) bool { return math.Abs(a-b) <= share*math.Max(a, b) }
