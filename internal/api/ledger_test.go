package api

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	apispec "github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

const gib = 1024 * resource.MiB

// fakeLedger is a scheduler with one accelerator of 24 GiB.
type fakeLedger struct {
	asked  []sched.LeaseRequest
	leases map[string]sched.LeaseState
	reset  []string
	wishes []sched.Wish
}

func (l *fakeLedger) Lease(_ context.Context, ask sched.LeaseRequest) (sched.LeaseState, error) {
	l.asked = append(l.asked, ask)
	switch {
	case ask.Bytes > 24*gib:
		return sched.LeaseState{}, &sched.NeverFitsError{Reason: &jobs.Error{Category: jobs.ResourceCat, Message: "No accelerator has 30 GiB; the largest has 24 GiB."}}
	case ask.Device == "7":
		return sched.LeaseState{}, &sched.NoDeviceError{Name: ask.Device, Known: []resource.DeviceID{"GPU-1"}}
	}
	now := time.Now()
	st := sched.LeaseState{Lease: resource.Lease{ID: "L1", Device: "GPU-1", Bytes: ask.Bytes, Holder: ask.Holder, Note: ask.Note, CreatedAt: now},
		Missing: gib, Holders: []string{"speech"}}
	if ask.For > 0 {
		st.ExpiresAt = now.Add(ask.For)
	}
	l.leases[st.ID] = st
	return st, nil
}

func (l *fakeLedger) Leases(context.Context) ([]sched.LeaseState, error) {
	var out []sched.LeaseState
	for _, st := range l.leases {
		out = append(out, st)
	}
	return out, nil
}

func (l *fakeLedger) EndLease(_ context.Context, id, _ string) error {
	if _, ok := l.leases[id]; !ok {
		return sched.ErrNoLease
	}
	delete(l.leases, id)
	return nil
}

func (l *fakeLedger) Profile(_ context.Context, instance string) (sched.ProfileState, error) {
	if instance != "speech" {
		return sched.ProfileState{}, &plugins.NotFoundError{Kind: "plugin", Name: instance}
	}
	p := learn.New(learn.Key{Plugin: "speech", ConfigHash: "c1", DeviceModel: "Card"})
	p.Observe(learn.Sample{Phase: learn.Load, At: time.Now(), Duration: 4 * time.Second, VRAM: 6 * gib, Source: learn.SourceNVML})
	p.Observe(learn.Sample{Phase: learn.Run, At: time.Now(), Duration: time.Second, VRAM: gib, Source: learn.SourceWorker})
	old := learn.New(learn.Key{Plugin: "speech", ConfigHash: "c0", DeviceModel: "Card"})
	return sched.ProfileState{Instance: instance, Plugin: "speech", ConfigHash: "c1", Profiles: []learn.Profile{p, old},
		Need: sched.Need{GPU: true, Devices: 1, ResidentVRAM: 6 * gib, ExecuteVRAM: gib, Known: true, Source: sched.SourceProfile}}, nil
}

func (l *fakeLedger) ResetProfile(_ context.Context, instance string) (int, error) {
	l.reset = append(l.reset, instance)
	return 2, nil
}

func (l *fakeLedger) Try(_ context.Context, w sched.Wish) (sched.Plan, error) {
	l.wishes = append(l.wishes, w)
	switch w.Instance {
	case "textstats": // has jobs in the queue
		return sched.Plan{Start: []sched.Start{{Job: "j1", Instance: w.Instance}}, Fail: []sched.Failure{{Job: "j2", Instance: w.Instance}}}, nil
	case "speech":
	default:
		return sched.Plan{}, &plugins.NotFoundError{Kind: "plugin", Name: w.Instance}
	}
	return sched.Plan{
		Start:   []sched.Start{{Job: sched.WishID, Instance: "speech", Devices: []resource.DeviceID{"GPU-1"}, Measure: true, Claims: []sched.Claim{{Owner: "speech", Kind: sched.KindResident, Instance: "speech", Device: "GPU-1", Bytes: 6 * gib, Phase: sched.PhaseReserved}}}},
		Evict:   []sched.Eviction{{Instance: "resting", Asker: "speech"}},
		Release: []sched.ReleaseAsk{{Instance: "textstats", Asker: "speech"}},
		Shadow:  &sched.Shadow{Job: "j9", Instance: "large", Devices: []resource.DeviceID{"GPU-1"}, VRAM: 20 * gib, At: time.Now(), Since: time.Now(), Draining: true},
	}, nil
}

func TestLeases_GivenListedEnded(t *testing.T) {
	t.Parallel()
	f := setup(t)
	r := f.do("POST", "/v1/leases", `{"mb":8192,"for":"2h","device":"GPU-1","note":"a game"}`)
	require.Equal(t, 201, r.StatusCode, "%s", r.body)
	require.Equal(t, "/v1/leases/L1", r.Header.Get("Location"))
	var l wire.Lease
	r.into(t, &l)
	require.InDelta(t, 8192, l.Mb, 0)
	require.InDelta(t, 1024, l.MissingMb, 0)
	require.Equal(t, []string{"speech"}, l.Holders)
	require.Equal(t, 2*time.Hour, l.ExpiresAt.Sub(l.CreatedAt))
	require.Equal(t, sched.LeaseRequest{Device: "GPU-1", Bytes: 8 * gib, For: 2 * time.Hour, Holder: l.Holder, Note: "a game"}, f.ledger.asked[0])
	require.True(t, strings.HasPrefix(l.Holder, "uid:"), "the caller is named: %s", l.Holder)

	var list wire.LeaseList
	f.do("GET", "/v1/leases", nil).into(t, &list)
	require.Len(t, list.Leases, 1)
	require.Equal(t, 204, f.do("DELETE", "/v1/leases/L1", nil).StatusCode)
	require.Equal(t, "lease_not_found", f.do("DELETE", "/v1/leases/L1", nil).code())
}

func TestLeases_BadOnesAreRefusedWithTheNumbers(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for body, want := range map[string]struct {
		status int
		code   string
		words  string
	}{
		`{"mb":30720}`:              {422, "never_fits", "the largest has 24 GiB"},
		`{"mb":1,"device":"7"}`:     {422, "unknown_name", "host, GPU-1"},
		`{"mb":0}`:                  {422, "invalid_body", "/mb"},
		`{"mb":1e-9}`:               {422, "invalid_body", "/mb"},
		`{"mb":1,"for":"10ms"}`:     {422, "invalid_body", "/for"},
		`{"mb":1,"for":"soon"}`:     {422, "invalid_body", "/for"},
		`{"mb":"8G"}`:               {422, "invalid_body", "/mb"},
		`{"for":"1h"}`:              {422, "invalid_body", "/mb"},
		`{"mb":1,"devise":"GPU-1"}`: {422, "invalid_body", `did you mean`},
	} {
		r := f.do("POST", "/v1/leases", body)
		require.Equal(t, want.status, r.StatusCode, "%s: %s", body, r.body)
		require.Equal(t, want.code, r.code(), body)
		require.Contains(t, string(r.body), want.words, body)
	}
	tok, secret, err := f.tokens.Create("reader", RoleSubmit, 0)
	require.NoError(t, err)
	require.NotEmpty(t, tok.Name)
	require.Equal(t, 403, f.doTCP(secret, "POST", "/v1/leases", `{"mb":1}`).StatusCode, "a lease takes memory from everybody")
	require.Equal(t, 200, f.doTCP(secret, "GET", "/v1/leases", nil).StatusCode)
}

func TestProfile_SaysWhereEachNumberComesFrom(t *testing.T) {
	t.Parallel()
	f := setup(t)
	var p wire.Profile
	f.do("GET", "/v1/plugins/speech/profile", nil).into(t, &p)
	require.Equal(t, "profile", p.Need.Source)
	require.InDelta(t, 6144, p.Need.ResidentVramMb, 0)
	require.Len(t, p.Profiles, 2)
	now, before := p.Profiles[0], p.Profiles[1]
	require.True(t, now.Current)
	require.False(t, before.Current)
	require.Equal(t, "nvml", now.ResidentVram.Source)
	require.Equal(t, "worker", now.ExecuteVram.Source)
	require.EqualValues(t, 4000, now.Load.P50Ms)
	require.Equal(t, 404, f.do("GET", "/v1/plugins/nobody/profile", nil).StatusCode)
	require.Equal(t, 204, f.do("DELETE", "/v1/plugins/speech/profile", nil).StatusCode)
	require.Equal(t, []string{"speech"}, f.ledger.reset)
}

func TestPlan_DryRunOfAJobThatNobodySubmitted(t *testing.T) {
	t.Parallel()
	f := setup(t)
	var p wire.Plan
	f.do("POST", "/v1/queue/plan", `{"plugin":"speech","priority":3,"demand":{"min_gpu_vram_mb":6144,"devices":2}}`).into(t, &p)
	require.Equal(t, []string{"GPU-1"}, p.Start[0].Devices)
	require.True(t, p.Start[0].Measure)
	require.InDelta(t, 6144, p.Start[0].Claims[0].Mb, 0)
	require.Equal(t, "resting", p.Evict[0].Plugin)
	require.Equal(t, "textstats", p.Release[0].Plugin)
	require.Equal(t, "large", p.Shadow.Plugin)
	require.True(t, p.Shadow.Draining)
	w := f.ledger.wishes[0]
	require.Equal(t, resource.Demand{RequiresGPU: true, Devices: 2, MinVRAM: 6 * gib}, *w.Demand, "video memory means an accelerator")
	require.Equal(t, 3, w.Priority)

	require.Empty(t, p.Start[0].Job, "nobody submitted it")
	var turn wire.Plan
	f.do("POST", "/v1/queue/plan", `{"plugin":"textstats"}`).into(t, &turn)
	require.Empty(t, turn.Start, "what happens to others was not asked")
	require.Empty(t, turn.Fail)
	require.Equal(t, "no_slot", turn.Wait[0].Block.Code)

	f.do("POST", "/v1/queue/plan", `{"plugin":"speech"}`)
	require.Nil(t, f.ledger.wishes[2].Demand, "as known")
	require.Equal(t, 404, f.do("POST", "/v1/queue/plan", `{"plugin":"nobody"}`).StatusCode)
	require.Equal(t, "invalid_body", f.do("POST", "/v1/queue/plan", `{"plugin":"speech","demand":{"vram":1}}`).code())
}

func TestSystem_LedgerAddsUp(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.life.state = func(st *sched.SchedulerState) {
		st.Margin = 100 * resource.MiB
		st.Devices = []sched.DeviceView{{ID: "GPU-1", Index: 0, Name: "Card", Total: 24 * gib, Used: 15 * gib, External: 2 * gib, Claimed: 14 * gib, Leased: gib, Margin: gib / 2, Free: 6*gib + gib/2, Exclusive: "speech"}}
		st.Accounts = []sched.WorkerAccount{
			{Instance: "speech", Device: "GPU-1", Resident: 12 * gib, Execute: 2 * gib, Measured: 13 * gib, Source: "nvml", Phase: sched.PhaseExecuting},
			{Instance: "speech", Device: resource.HostDevice, Resident: 200 * resource.MiB, Measured: 300 * resource.MiB},
		}
		st.Leases = []sched.LeaseState{{Lease: resource.Lease{ID: "L1", Device: resource.HostDevice, Bytes: 50 * resource.MiB}}}
		st.Shadow = &sched.Shadow{Job: "j1", Instance: "large", Devices: []resource.DeviceID{"GPU-1"}, VRAM: 20 * gib}
		st.Quarantined = map[string]string{"broken": "it crashed 5 times"}
		st.Groups = []sched.WaitingGroup{{Instance: "full", Queued: 9, Block: jobs.Block{Code: "no_slot", Sentence: "1 job of full comes first."}}, {Instance: "large", Queued: 3, Block: jobs.Block{Code: "resource", Sentence: "Needs 20 GiB on one accelerator; 6.5 GiB are free."}}}
		st.MonitorInstance = "mon"
	}
	f.machine.snap.Host.MemAvailable = 3000 * resource.MiB
	var s wire.System
	f.do("GET", "/v1/system", nil).into(t, &s)
	require.Len(t, s.Ledger, 2)
	host, gpu := s.Ledger[0], s.Ledger[1]
	require.Equal(t, "host", host.Uuid)
	require.Nil(t, host.Index)
	require.InDelta(t, 300, host.ClaimedMb, 0, "what is used counts where it is more than what is claimed")
	require.InDelta(t, 1096-300, host.ExternalMb, 0)
	require.InDelta(t, 50, host.LeasedMb, 0)
	require.Zero(t, *gpu.Index)
	require.InDelta(t, gpu.TotalMb-gpu.MarginMb-gpu.ExternalMb-gpu.ClaimedMb-gpu.LeasedMb-gpu.QuarantinedMb, gpu.FreeMb, 0)
	require.Len(t, gpu.Workers, 1)
	require.InDelta(t, 14*1024, gpu.Workers[0].CountedMb, 0)
	require.Equal(t, "nvml", gpu.Workers[0].Source)

	var sc wire.Scheduler
	f.do("GET", "/v1/scheduler", nil).into(t, &sc)
	require.Equal(t, "mon", sc.MonitorPlugin)
	require.Equal(t, "large", sc.Shadow.Plugin)
	require.Len(t, sc.Groups, 2)
	require.Equal(t, 3, sc.Groups[1].Queued)
	require.Equal(t, "it crashed 5 times", sc.Quarantined["broken"])
	var q wire.Queue
	f.do("GET", "/v1/queue", nil).into(t, &q)
	require.Len(t, q.Waiting, 1, "who waits for no more than its turn is not worth a line")
	require.Contains(t, q.Waiting[0].Block.Sentence, "20 GiB")
}

// Who follows the journal finds every kind in the description.
func TestSpec_NamesEveryKindOfEvent(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile(filepath.Join("..", "events", "kinds.go"))
	require.NoError(t, err)
	kinds := regexp.MustCompile(`Kind = "([a-z._]+)"`).FindAllStringSubmatch(string(src), -1)
	require.Greater(t, len(kinds), 20)
	for _, k := range kinds {
		require.Contains(t, string(apispec.Spec), "`"+k[1]+"`")
	}
}

func TestInstances_PlacementIsSetAndLifted(t *testing.T) {
	t.Parallel()
	f := setup(t)
	r := f.do("POST", "/v1/plugins/textstats/instances", `{"id":"second","placement":{"count":2,"pin":["0","GPU-1"]}}`)
	require.Equal(t, 201, r.StatusCode, "%s", r.body)
	var inst wire.Instance
	r.into(t, &inst)
	require.Equal(t, &wire.Placement{Count: 2, Pin: []string{"0", "GPU-1"}}, inst.Placement)

	f.do("PATCH", "/v1/plugins/textstats/instances/second", `{"placement":{"pin":[]},"pinned":true}`).into(t, &inst)
	require.NotNil(t, inst.Placement.Pin, "an empty list is not the same as none")
	require.Empty(t, inst.Placement.Pin)
	require.True(t, inst.Pinned)
	require.Equal(t, 404, f.do("PATCH", "/v1/plugins/speech/instances/second", `{"pinned":true}`).StatusCode)
	for _, body := range []string{`{}`, `{"placement":{"pin":["a b"]}}`, `{"placement":{"pin":"0"}}`, `{"placement":{"count":65}}`, `{"config":{}}`} {
		require.Equal(t, "invalid_body", f.do("PATCH", "/v1/plugins/textstats/instances/second", body).code(), body)
	}
}

func TestExplain_HasTheArithmetic(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"speech","priority":5}`)
	f.life.explained = func(e *sched.Explanation) {
		e.Need = sched.Need{GPU: true, Devices: 1, ResidentVRAM: 20 * gib, Known: true, Source: sched.SourceManifest}
		e.Rank = &sched.Rank{Priority: 5, Age: 1.5, Share: -0.5, Total: 6}
		e.Devices = []sched.DeviceView{{ID: "GPU-1", Total: 24 * gib, Free: gib}}
		e.Shadow = &sched.Shadow{Job: jobs.ID(id), Instance: "speech", Devices: []resource.DeviceID{"GPU-1"}}
		e.Block = &jobs.Block{Code: "resource", Sentence: "too little", Holders: []string{"large"}}
	}
	var e wire.Explanation
	f.do("GET", "/v1/jobs/"+id+"/explain", nil).into(t, &e)
	require.InDelta(t, e.Rank.Priority+e.Rank.Age+e.Rank.Share, e.Rank.Total, 1e-9)
	require.Equal(t, "manifest", e.Need.Source)
	require.InDelta(t, 1024, e.Devices[0].FreeMb, 0)
	require.Equal(t, id, e.Shadow.Job)
	require.Equal(t, []string{"large"}, e.Block.Holders)
}

func TestProblem_AQuotaIsNotTheQueuesBound(t *testing.T) {
	t.Parallel()
	for code, limit := range map[string]*jobs.LimitError{
		"quota_reached": {What: "pending jobs of one submitter", Limit: 2, Quota: true},
		"limit_reached": {What: "pending jobs", Limit: 9},
	} {
		p := explain(limit)
		require.Equal(t, code, p.Code)
		require.Equal(t, 429, problemKinds[p.Code].status)
		require.Positive(t, p.RetryAfter)
	}
}
