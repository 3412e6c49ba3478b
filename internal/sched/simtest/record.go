package simtest

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
)

// Span is a stretch of time on the devices; times count from the beginning.
type Span struct {
	Instance string              `json:"instance"`
	Kind     string              `json:"kind"` // run, oom, load, resident, draining, returning
	Job      string              `json:"job,omitempty"`
	Devices  []resource.DeviceID `json:"devices,omitempty"`
	From     time.Duration       `json:"from"`
	To       time.Duration       `json:"to"`
}

// Kinds of Span.
const (
	KindRun       = "run"
	KindOOM       = "oom" // a run that ended out of memory or with its worker
	KindLoad      = "load"
	KindResident  = "resident"
	KindStopping  = "stopping"
	KindReturning = "returning" // dead, and its memory not back yet
)

// JobRecord is one job's way.
type JobRecord struct {
	ID        string        `json:"id"`
	Plugin    string        `json:"plugin"`
	Submitter string        `json:"submitter"`
	Priority  int           `json:"priority"`
	Submitted time.Duration `json:"submitted"`
	// Wait is from the submit to the begin of the run that ended the job, loading
	// included; Run is what the run itself took.
	Wait     time.Duration `json:"wait"`
	Run      time.Duration `json:"run"`
	Ended    time.Duration `json:"ended"`
	Status   jobs.Status   `json:"status"`
	Attempts int           `json:"attempts"`
	Error    string        `json:"error,omitempty"`

	began time.Duration // of the newest run
	ends  int           // how often it became final
}

// Point is what an owner holds from a moment on.
type Point struct {
	At    time.Duration
	Bytes resource.Bytes
}

// OOM is an allocation that failed.
type OOM struct {
	At     time.Duration     `json:"at"`
	Owner  string            `json:"owner"`
	Device resource.DeviceID `json:"device"`
	Asked  resource.Bytes    `json:"asked_bytes"`
	Free   resource.Bytes    `json:"free_bytes"`
}

// Note is an event of the scheduler.
type Note struct {
	At       time.Duration `json:"at"`
	Kind     events.Kind   `json:"kind"`
	Instance string        `json:"instance,omitempty"`
	Data     string        `json:"data,omitempty"`
}

// recorder writes down what happens. It is the model's observer and the
// scheduler's journal.
type recorder struct {
	d     *driver
	jobs  map[jobs.ID]*JobRecord
	order []*JobRecord
	spans []Span
	open  map[string]*Span // runs by job id
	life  map[string]*Span // what a worker is doing, by instance
	back  map[string]*Span // memory of a dead one, by instance
	mem   map[resource.DeviceID]map[string][]Point
	owner map[resource.DeviceID][]string // in order of appearance
	ooms  []OOM
	notes []Note

	admissions, loads, stops, releases int
}

func newRecorder(d *driver) *recorder {
	return &recorder{d: d, jobs: make(map[jobs.ID]*JobRecord), open: make(map[string]*Span), life: make(map[string]*Span), back: make(map[string]*Span),
		mem: make(map[resource.DeviceID]map[string][]Point), owner: make(map[resource.DeviceID][]string)}
}

func (r *recorder) submitted(j *job) {
	rec := &JobRecord{ID: string(j.ID), Plugin: j.Spec.Instance, Submitter: j.Submitter, Priority: j.Spec.Priority, Submitted: r.d.since(), Status: jobs.Pending, began: -1}
	r.jobs[j.ID] = rec
	r.order = append(r.order, rec)
}

func (r *recorder) admitted(j *job) {
	r.admissions++
	r.jobs[j.ID].Status = jobs.Running
}

func (r *recorder) requeued(j *job, e *jobs.Error) {
	rec := r.jobs[j.ID]
	rec.Status, rec.Attempts = jobs.Pending, j.Attempt
	if e != nil {
		rec.Error = e.Message
	}
}

func (r *recorder) ended(j *job) {
	rec := r.jobs[j.ID]
	rec.Status, rec.Attempts, rec.Ended = j.Status, j.Attempt, r.d.since()
	rec.ends++
	rec.Error = ""
	if j.Error != nil {
		rec.Error = j.Error.Message
	}
	if rec.began >= 0 {
		rec.Wait, rec.Run = rec.began-rec.Submitted, rec.Ended-rec.began
	} else {
		rec.Wait = rec.Ended - rec.Submitted
	}
}

func (r *recorder) runBegan(id, instance string, on map[resource.DeviceID]resource.Bytes) {
	s := &Span{Instance: instance, Kind: KindRun, Job: id, From: r.d.since()}
	s.Devices = append(s.Devices, sortedKeys(on)...)
	r.open[id] = s
	if rec := r.jobs[jobs.ID(id)]; rec != nil {
		rec.began = s.From
	}
}

func (r *recorder) runEnded(id string, err error) {
	s := r.open[id]
	if s == nil {
		return
	}
	delete(r.open, id)
	var memory *sim.MemoryError
	if errors.As(err, &memory) || errors.Is(err, sim.ErrCrashed) {
		s.Kind = KindOOM
	}
	s.To = r.d.since()
	r.spans = append(r.spans, *s)
}

// Memory implements sim.Observer, as do the following.
func (r *recorder) Memory(at time.Time, dev resource.DeviceID, owner string, n resource.Bytes) {
	if r.mem[dev] == nil {
		r.mem[dev] = make(map[string][]Point)
	}
	points, known := r.mem[dev][owner]
	if !known {
		r.owner[dev] = append(r.owner[dev], owner)
	}
	p := Point{At: at.Sub(epoch), Bytes: n}
	if k := len(points); k > 0 && points[k-1].At == p.At {
		points[k-1] = p
	} else {
		points = append(points, p)
	}
	r.mem[dev][owner] = points
}

func (r *recorder) Worker(at time.Time, name string, _ int, state string, devices []resource.DeviceID) {
	now := at.Sub(epoch)
	in := r.life
	next := ""
	switch state {
	case "load":
		next = KindLoad
	case "ready":
		next = KindResident
	case "stop":
		next = KindStopping
	case "gone":
		in = r.back
	}
	if s := in[name]; s != nil {
		s.To = now
		r.spans = append(r.spans, *s)
		delete(in, name)
	}
	if next != "" {
		r.life[name] = &Span{Instance: name, Kind: next, Devices: devices, From: now}
	}
	if state == "dead" {
		r.back[name] = &Span{Instance: name, Kind: KindReturning, Devices: devices, From: now}
	}
}

func (r *recorder) OutOfMemory(at time.Time, owner string, dev resource.DeviceID, asked, free resource.Bytes) {
	r.ooms = append(r.ooms, OOM{At: at.Sub(epoch), Owner: owner, Device: dev, Asked: asked, Free: free})
}

// Emit implements events.Recorder.
func (r *recorder) Emit(drafts ...events.Draft) {
	for _, d := range drafts {
		n := Note{At: r.d.since(), Kind: d.Kind, Instance: d.Instance}
		if body, err := json.Marshal(d.Data); err == nil && string(body) != "null" {
			n.Data = string(body)
		}
		r.notes = append(r.notes, n)
	}
}

// Record implements events.Recorder.
func (r *recorder) Record(_ context.Context, drafts ...events.Draft) ([]events.Event, error) {
	r.Emit(drafts...)
	return nil, nil
}

// close ends what is still open when the simulation ends.
func (r *recorder) close() {
	now := r.d.since()
	for _, open := range []map[string]*Span{r.open, r.life, r.back} {
		for _, name := range sortedKeys(open) {
			s := open[name]
			s.To = now
			r.spans = append(r.spans, *s)
		}
		clear(open)
	}
}
