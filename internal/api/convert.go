package api

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// What the domain calls things, in the words of the description.

// wireJob is a job as everyone may see it. Arguments are added by the caller,
// where one job is asked for.
func wireJob(j jobs.Job) wire.Job {
	out := wire.Job{
		Id: string(j.ID), Plugin: j.Spec.Instance, Status: wire.JobStatus(j.Status), Phase: wire.JobPhase(j.Phase),
		Block: wireBlock(j.Block), Priority: j.Spec.Priority, Attempt: j.Attempt, MaxAttempts: j.Spec.MaxAttempts,
		Stream: j.Spec.Stream, Labels: j.Spec.Labels, QueueTimeout: durationText(j.Spec.QueueTimeout), RunTimeout: durationText(j.Spec.RunTimeout),
		Submitter: j.Submitter, RetryOf: string(j.RetryOf), Revision: j.Revision, CreatedAt: j.CreatedAt.UTC(),
		StartedAt: utc(j.StartedAt), FinishedAt: utc(j.FinishedAt), NotBefore: utc(j.NotBefore),
		CancelRequestedAt: utc(j.CancelRequestedAt), CancelReason: j.CancelReason, Message: j.ProgressMessage,
		Error: wireError(j.Error), LastError: wireError(j.LastError),
	}
	for _, d := range j.Spec.DependsOn {
		out.DependsOn = append(out.DependsOn, string(d))
	}
	if len(out.DependsOn) > 0 {
		out.OnDependencyFailure = "cancel"
		if j.Spec.RunOnDepFail {
			out.OnDependencyFailure = "run"
		}
	}
	if j.Progress != 0 || j.Status == jobs.Running {
		p := j.Progress
		out.Progress = &p
	}
	if r := j.Result; r != nil {
		out.Result = &wire.ResultInfo{Size: r.Size, ContentType: r.ContentType, Partial: r.Partial, Sha256: r.SHA256,
			Url: "/v1/jobs/" + string(j.ID) + "/result"}
	}
	return out
}

// wireJobFull adds what a job was asked with.
func wireJobFull(j jobs.Job) wire.Job {
	out := wireJob(j)
	out.Args, out.Kwargs, out.Task, out.Method = j.Spec.Args, j.Spec.Kwargs, j.Spec.Task, j.Spec.Method
	return out
}

func wireJobs(list []jobs.Job) []wire.Job {
	out := make([]wire.Job, len(list))
	for i, j := range list {
		out[i] = wireJob(j)
	}
	return out
}

func wireBlock(b *jobs.Block) *wire.Block {
	if b == nil {
		return nil
	}
	return &wire.Block{Code: b.Code, Sentence: b.Sentence, Needs: wireShortfall(b.Needs), Holders: b.Holders,
		Earliest: utc(b.Earliest), Since: utc(b.Since)}
}

func wireShortfall(list []resource.Shortfall) []wire.Shortfall {
	var out []wire.Shortfall
	for _, s := range list {
		out = append(out, wire.Shortfall{Resource: s.Resource, Device: string(s.Device), NeededMb: s.Needed.MB(), AvailableMb: s.Available.MB()})
	}
	return out
}

func wireError(e *jobs.Error) *wire.JobError {
	if e == nil {
		return nil
	}
	return &wire.JobError{Category: wire.JobErrorCategory(e.Category), Message: e.Message, Retriable: e.Retriable, Type: e.Type,
		Traceback: e.Traceback, StderrTail: e.StderrTail, Shortfall: wireShortfall(e.Shortfall), Fields: e.Fields}
}

func wireWorker(st supervisor.Status) wire.Worker {
	out := wire.Worker{
		Id: st.Instance, Plugin: st.Plugin, State: wire.WorkerState(st.State), Since: st.Since.UTC(), Cause: st.Cause, Pid: st.PID,
		Generation: st.Generation, Restarts: st.Restarts, StartedAt: utc(st.StartedAt), ReadyAt: utc(st.ReadyAt), RetryAt: utc(st.RetryAt),
		LoadMs: st.LoadMillis, Jobs: jobsOf(st.Calls), Devices: st.Devices, CallsTotal: st.CallsTotal, Concurrency: st.Concurrency, LastError: st.LastError,
		Progress: st.Progress, Message: st.ProgressMessage, RssMb: resource.Bytes(st.RSS).MB(), CpuPercent: st.CPUPercent,
	}
	if st.LastExit != nil {
		out.LastExit = st.LastExit.String()
	}
	if r := st.Ready; r != nil {
		out.Version, out.Runtime, out.Capabilities = r.Version, r.Runtime, r.Capabilities
	}
	if st.Usage != nil && len(st.Usage.Devices) > 0 {
		out.DeviceMemoryMb = make(map[string]float64, len(st.Usage.Devices))
		for dev, bytes := range st.Usage.Devices {
			out.DeviceMemoryMb[dev] = resource.Bytes(bytes).MB()
		}
	}
	out.Tier, out.Isolation = st.Tier, wireFacts(st.Isolation)
	return out
}

func wireFacts(facts []supervisor.IsolationFact) []wire.IsolationFact {
	out := make([]wire.IsolationFact, len(facts))
	for i, f := range facts {
		out[i] = wire.IsolationFact{Mechanism: f.Mechanism, Requested: f.Requested, InForce: f.InForce, VerifiedBy: f.VerifiedBy, Detail: f.Detail}
	}
	return out
}

func wireIsolation(i *plugins.Isolation) *wire.IsolationWish {
	if i == nil {
		return nil
	}
	return &wire.IsolationWish{Tier: i.Tier, Require: i.Require, Network: i.Network, Read: i.Read}
}

func isolationWish(i *wire.IsolationWish) *plugins.Isolation {
	if i == nil {
		return nil
	}
	read := make([]string, len(i.Read))
	for n, path := range i.Read {
		read[n] = filepath.Clean(path)
	}
	return &plugins.Isolation{Tier: i.Tier, Require: i.Require, Network: i.Network, Read: read}
}

func wireLimits(l *plugins.Limits) *wire.WorkerLimits {
	if l == nil {
		return nil
	}
	return &wire.WorkerLimits{MemoryMaxMb: l.MemoryMaxMB, PidsMax: l.PidsMax, CpuMax: l.CPUMax, CpuWeight: l.CPUWeight, IoWeight: l.IOWeight,
		Nofile: l.NoFile, Nice: l.Nice}
}

func workerLimits(l *wire.WorkerLimits) *plugins.Limits {
	if l == nil {
		return nil
	}
	return &plugins.Limits{MemoryMaxMB: l.MemoryMaxMb, PidsMax: l.PidsMax, CPUMax: l.CpuMax, CPUWeight: l.CpuWeight, IOWeight: l.IoWeight,
		NoFile: l.Nofile, Nice: l.Nice}
}

// jobsOf leaves out the calls that are no jobs.
func jobsOf(calls []string) []string {
	return slices.DeleteFunc(slices.Clone(calls), func(id string) bool { return strings.HasPrefix(id, PrivateCall) })
}

func wireInstance(inst plugins.Instance, state supervisor.State) wire.Instance {
	return wire.Instance{Id: inst.ID, Plugin: inst.Plugin, Enabled: inst.Enabled, Pinned: inst.Pinned, Autoload: inst.Autoload,
		Concurrency: inst.Concurrency, Config: orEmpty(inst.Config), Revision: inst.Revision, UpdatedAt: utc(inst.UpdatedAt),
		Placement: wirePlacement(inst.Placement), Isolation: wireIsolation(inst.Isolation), Limits: wireLimits(inst.Limits), State: wire.WorkerState(state)}
}

func wirePlacement(p *plugins.Placement) *wire.Placement {
	if p == nil {
		return nil
	}
	return &wire.Placement{Count: p.Count, Pin: p.Pin, Prefer: p.Prefer, Avoid: p.Avoid}
}

func placement(p *wire.Placement) *plugins.Placement {
	if p == nil {
		return nil
	}
	return &plugins.Placement{Count: p.Count, Pin: p.Pin, Prefer: p.Prefer, Avoid: p.Avoid}
}

func wireDemand(d resource.Demand) *wire.Requirements {
	return &wire.Requirements{RequiresGpu: d.RequiresGPU, Devices: d.Devices, MinGpuVramMb: d.MinVRAM.MB(), MinSystemRamMb: d.MinRAM.MB()}
}

func orEmpty(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("{}")
	}
	return raw
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// durationText is "" for none, so that the field is left out.
func durationText(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return d.String()
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
