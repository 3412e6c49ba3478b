package api

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// ListLeases is GET /v1/leases.
func (s *server) ListLeases(ctx context.Context, _ wire.ListLeasesRequestObject) (wire.ListLeasesResponseObject, error) {
	list, err := s.o.Ledger.Leases(ctx)
	if err != nil {
		return nil, err
	}
	out := wire.ListLeases200JSONResponse{Leases: make([]wire.Lease, 0, len(list))}
	for _, l := range list {
		out.Leases = append(out.Leases, wireLease(l))
	}
	return out, nil
}

// CreateLease is POST /v1/leases.
func (s *server) CreateLease(ctx context.Context, req wire.CreateLeaseRequestObject) (wire.CreateLeaseResponseObject, error) {
	b := req.Body
	ask := sched.LeaseRequest{Device: b.Device, Bytes: resource.FromMB(b.Mb), Holder: principalOf(ctx).Name, Note: b.Note}
	if ask.Bytes <= 0 {
		return nil, badField("/mb", "must be at least one byte")
	}
	if b.For != "" {
		d, err := time.ParseDuration(b.For)
		if err != nil || d < time.Second {
			return nil, badField("/for", "must be a duration of at least one second")
		}
		ask.For = d
	}
	l, err := s.o.Ledger.Lease(ctx, ask)
	if err != nil {
		return nil, err
	}
	return wire.CreateLease201JSONResponse{Body: wireLease(l), Headers: wire.CreateLease201ResponseHeaders{Location: "/v1/leases/" + l.ID}}, nil
}

// EndLease is DELETE /v1/leases/{id}.
func (s *server) EndLease(ctx context.Context, req wire.EndLeaseRequestObject) (wire.EndLeaseResponseObject, error) {
	if err := s.o.Ledger.EndLease(ctx, req.Id, principalOf(ctx).Name); err != nil {
		return nil, err
	}
	return wire.EndLease204Response{}, nil
}

// GetProfile is GET /v1/plugins/{name}/profile.
func (s *server) GetProfile(ctx context.Context, req wire.GetProfileRequestObject) (wire.GetProfileResponseObject, error) {
	p, err := s.o.Ledger.Profile(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	out := wire.GetProfile200JSONResponse{Name: p.Instance, Plugin: p.Plugin, ConfigHash: p.ConfigHash, Need: *wireNeed(p.Need),
		Profiles: make([]wire.LearnedProfile, 0, len(p.Profiles))}
	for _, l := range p.Profiles {
		out.Profiles = append(out.Profiles, wire.LearnedProfile{ConfigHash: l.ConfigHash, DeviceModel: l.DeviceModel, Current: l.ConfigHash == p.ConfigHash,
			ResidentVram: wireFigure(l.ResidentVRAM), ExecuteVram: wireFigure(l.ExecuteVRAM), WholeVram: wireFigure(l.WholeVRAM),
			ResidentRam: wireFigure(l.ResidentRAM), ExecuteRam: wireFigure(l.ExecuteRAM),
			Load: wireTimes(l.Load), Run: wireTimes(l.Run), UpdatedAt: utc(l.UpdatedAt)})
	}
	return out, nil
}

// ResetProfile is DELETE /v1/plugins/{name}/profile.
func (s *server) ResetProfile(ctx context.Context, req wire.ResetProfileRequestObject) (wire.ResetProfileResponseObject, error) {
	if _, err := s.o.Ledger.ResetProfile(ctx, req.Name); err != nil {
		return nil, err
	}
	return wire.ResetProfile204Response{}, nil
}

// PlanJob is POST /v1/queue/plan.
func (s *server) PlanJob(ctx context.Context, req wire.PlanJobRequestObject) (wire.PlanJobResponseObject, error) {
	b := req.Body
	wish := sched.Wish{Instance: b.Plugin, Priority: b.Priority, Submitter: principalOf(ctx).Name}
	if d := b.Demand; d != nil {
		wish.Demand = &resource.Demand{RequiresGPU: d.RequiresGpu || d.MinGpuVramMb > 0 || d.Devices > 0, Devices: d.Devices,
			MinVRAM: resource.FromMB(d.MinGpuVramMb), MinRAM: resource.FromMB(d.MinSystemRamMb)}
	}
	plan, err := s.o.Ledger.Try(ctx, wish)
	if err != nil {
		return nil, err
	}
	return wire.PlanJob200JSONResponse(s.wirePlan(ofWish(plan, b.Plugin))), nil
}

// ofWish keeps what a plan says of the wished job, which has no id. Where it says
// nothing the jobs of its plugin that are there already come first.
func ofWish(plan sched.Plan, instance string) sched.Plan {
	plan.Start = slices.DeleteFunc(slices.Clone(plan.Start), func(s sched.Start) bool { return s.Job != "" && s.Job != sched.WishID })
	plan.Fail = slices.DeleteFunc(slices.Clone(plan.Fail), func(f sched.Failure) bool { return f.Job != "" && f.Job != sched.WishID })
	for i := range plan.Start {
		plan.Start[i].Job = ""
		plan.Start[i].Claims = slices.Clone(plan.Start[i].Claims)
		for j := range plan.Start[i].Claims {
			if c := &plan.Start[i].Claims[j]; c.Owner == string(sched.WishID) {
				c.Owner = ""
			}
		}
	}
	for i := range plan.Fail {
		plan.Fail[i].Job = ""
	}
	if sh := plan.Shadow; sh != nil && sh.Job == sched.WishID {
		own := *sh
		own.Job = ""
		plan.Shadow = &own
	}
	if len(plan.Start)+len(plan.Fail) == 0 && plan.Block[instance] == nil {
		plan.Block = map[string]*jobs.Block{instance: {Code: "no_slot", Sentence: "jobs of " + instance + " that wait already come first"}}
	}
	return plan
}

func (s *server) wirePlan(plan sched.Plan) wire.Plan {
	out := wire.Plan{Policy: s.o.Lifecycle.State().Policy, Start: []wire.PlanStart{}, Wait: []wire.PlanWait{}, Evict: []wire.PlanEviction{},
		Shadow: wireShadow(plan.Shadow), WakeAt: utc(plan.WakeAt)}
	for _, st := range plan.Start {
		x := wire.PlanStart{Job: string(st.Job), Plugin: st.Instance, Devices: deviceNames(st.Devices), Measure: st.Measure}
		if len(st.Claims) > 0 {
			x.Claims = wireClaims(st.Claims)
		}
		out.Start = append(out.Start, x)
	}
	for _, f := range plan.Fail {
		out.Fail = append(out.Fail, wire.PlanFailure{Job: string(f.Job), Plugin: f.Instance, Error: wireError(f.Error)})
	}
	for _, name := range sortedKeys(plan.Block) {
		if b := wireBlock(plan.Block[name]); b != nil {
			out.Wait = append(out.Wait, wire.PlanWait{Plugin: name, Block: b})
		}
	}
	for _, e := range plan.Evict {
		out.Evict = append(out.Evict, wire.PlanEviction{Plugin: e.Instance, Asker: e.Asker})
	}
	for _, r := range plan.Release {
		out.Release = append(out.Release, wire.PlanRelease{Plugin: r.Instance, Asker: r.Asker})
	}
	return out
}

func wireLease(l sched.LeaseState) wire.Lease {
	return wire.Lease{Id: l.ID, Device: string(l.Device), Mb: l.Bytes.MB(), MissingMb: l.Missing.MB(), Holders: l.Holders, Holder: l.Holder,
		Note: l.Note, CreatedAt: l.CreatedAt.UTC(), ExpiresAt: utc(l.ExpiresAt)}
}

func wireNeed(n sched.Need) *wire.Need {
	return &wire.Need{Gpu: n.GPU, Devices: n.Devices, ResidentVramMb: n.ResidentVRAM.MB(), ExecuteVramMb: n.ExecuteVRAM.MB(),
		ResidentRamMb: n.ResidentRAM.MB(), ExecuteRamMb: n.ExecuteRAM.MB(), Known: n.Known, Source: n.Source}
}

func wireFigure(f learn.Figure) wire.LearnedFigure {
	return wire.LearnedFigure{Mb: f.Estimate.MB(), MaxMb: f.Max.MB(), P95Mb: f.P95().MB(), Samples: f.Samples, Clean: f.Clean, Ooms: f.OOMs, Source: f.Source}
}

func wireTimes(t learn.Times) wire.LearnedTimes {
	return wire.LearnedTimes{Count: t.Count, Failed: t.Failed, P50Ms: t.P50().Milliseconds(), P90Ms: t.P90().Milliseconds()}
}

func wireRank(r *sched.Rank) *wire.Rank {
	if r == nil {
		return nil
	}
	return &wire.Rank{Priority: r.Priority, Age: r.Age, Share: r.Share, Total: r.Total, Affinity: r.Affinity}
}

func wireShadow(sh *sched.Shadow) *wire.Shadow {
	if sh == nil {
		return nil
	}
	return &wire.Shadow{Job: string(sh.Job), Plugin: sh.Instance, Devices: orNone(deviceNames(sh.Devices)), VramMb: sh.VRAM.MB(), RamMb: sh.RAM.MB(),
		At: utc(sh.At), Since: utc(sh.Since), Draining: sh.Draining}
}

func wireGroups(groups []sched.WaitingGroup) []wire.WaitingGroup {
	out := make([]wire.WaitingGroup, 0, len(groups))
	for _, g := range groups {
		out = append(out, wire.WaitingGroup{Plugin: g.Instance, Queued: g.Queued, Block: *wireBlock(&g.Block)})
	}
	return out
}

// waiting leaves out the plugins whose jobs wait for no more than their turn.
func waiting(groups []sched.WaitingGroup) []wire.WaitingGroup {
	groups = slices.DeleteFunc(slices.Clone(groups), func(g sched.WaitingGroup) bool { return g.Block.Code == "no_slot" })
	return wireGroups(groups)
}

func deviceNames(ids []resource.DeviceID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return out
}

// wireDevices is the ledger of accelerators.
func wireDevices(devices []sched.DeviceView, accounts []sched.WorkerAccount) []wire.DeviceLedger {
	var out []wire.DeviceLedger
	for _, d := range devices {
		out = append(out, wire.DeviceLedger{Uuid: string(d.ID), Index: &d.Index, Name: d.Name, TotalMb: d.Total.MB(), UsedMb: d.Used.MB(),
			ExternalMb: d.External.MB(), ClaimedMb: d.Claimed.MB(), LeasedMb: d.Leased.MB(), QuarantinedMb: d.Quarantined.MB(),
			MarginMb: d.Margin.MB(), FreeMb: d.Free.MB(), Unified: d.Unified, Exclusive: d.Exclusive, Workers: wireAccounts(d.ID, accounts)})
	}
	return out
}

func wireAccounts(device resource.DeviceID, accounts []sched.WorkerAccount) []wire.WorkerAccount {
	var out []wire.WorkerAccount
	for _, a := range accounts {
		if a.Device == device {
			out = append(out, wire.WorkerAccount{Plugin: a.Instance, ResidentMb: a.Resident.MB(), ExecuteMb: a.Execute.MB(),
				MeasuredMb: a.Measured.MB(), CountedMb: a.Counted().MB(), Source: a.Source, Phase: a.Phase})
		}
	}
	return out
}

// hostLedger is the machine's own memory in the words of an accelerator's. What
// our workers were seen to use is part of what is used; the rest is external.
func hostLedger(h resource.Host, st sched.SchedulerState) wire.DeviceLedger {
	var claimed, measured, leased, quarantined resource.Bytes
	for _, a := range st.Accounts {
		if a.Device == resource.HostDevice {
			claimed += a.Counted()
			measured += a.Measured
		}
	}
	for _, l := range st.Leases {
		if l.Device == resource.HostDevice {
			leased += l.Bytes
		}
	}
	for _, c := range st.Claims {
		if c.Device == resource.HostDevice && c.Phase == sched.PhaseQuarantined {
			quarantined += c.Bytes
		}
	}
	used := h.MemTotal - h.MemAvailable
	return wire.DeviceLedger{Uuid: string(resource.HostDevice), Name: fmt.Sprintf("%d CPUs", h.CPUs), TotalMb: h.MemTotal.MB(), UsedMb: used.MB(),
		ExternalMb: max(used-measured, 0).MB(), ClaimedMb: claimed.MB(), LeasedMb: leased.MB(), QuarantinedMb: quarantined.MB(),
		MarginMb: st.Margin.MB(), FreeMb: st.FreeRAM.MB(), Workers: wireAccounts(resource.HostDevice, st.Accounts)}
}
