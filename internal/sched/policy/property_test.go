package policy_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"pgregory.net/rapid"
)

func TestReserve_Properties(t *testing.T) {
	checkMany(t, 50, reserveHolds)
}

func FuzzReserve(f *testing.F) { f.Fuzz(rapid.MakeFuzz(reserveHolds)) }

func reserveHolds(t *rapid.T) {
	v := drawBox(t).v
	t.Log(sketch(v))
	before := clone(v)
	p := policy.Reserve(policy.ReserveOptions{})
	plan := p.Decide(v)
	if !reflect.DeepEqual(v, before) {
		t.Fatal("the view was changed")
	}
	if again := p.Decide(v); !reflect.DeepEqual(again, plan) {
		t.Fatalf("decided otherwise the second time: %s, %s", tell(v, plan), tell(v, again))
	}
	answersAll(t, v, plan)
	staysWithinWhatIsFree(t, v, plan)
	sitsWhereItMay(t, v, plan)
	measuresAlone(t, v, plan)
	stopsOnlyWhoMayGo(t, v, plan)
	blocksAreTrue(t, v, plan)
	shadowIsKept(t, v, plan)
	swapsStayInBudget(t, v, plan)
	evictionsPay(t, v, plan)
}

// sketch is a view in a few lines, for failures.
func sketch(v sched.View) string {
	var s strings.Builder
	fmt.Fprintf(&s, "fresh %v, host %d free, slots %d, quota %v, swaps %v, monitor %q\n", v.Fresh, v.FreeRAM/gib, v.Slots, v.Quota, v.SwapsLeft, v.MonitorInstance)
	for _, d := range v.Devices {
		fmt.Fprintf(&s, "%s: %d of %d free, margin %d, for %q\n", d.ID, d.Free/gib, d.Total/gib, d.Margin/gib, d.Exclusive)
	}
	for _, g := range v.Groups {
		fmt.Fprintf(&s, "%s: %+v, %d ready, %d queued, slots %d, load %v, on %v, resident %v since %v, idle %v, loading %v, pinned %v, stopping %q, waits %v %v, times %v %v, pins %v %v %v, first %d\n",
			g.Instance, g.Need, len(g.Ready), g.Queued, g.SlotsFree, g.LoadWanted, g.Devices, g.Resident, v.Now.Sub(g.ResidentSince), !g.IdleSince.IsZero(), g.Loading, g.Pinned,
			g.Stopping, g.WaitingFor, !g.WaitSince.IsZero(), g.LoadTime, g.RunTimeP90, g.Pin, g.Prefer, g.Avoid, topPriority(&g))
	}
	for _, c := range v.Claims {
		fmt.Fprintf(&s, "%s %s of %q on %s: %d, %d seen, %s\n", c.Owner, c.Kind, c.Instance, c.Device, c.Bytes/gib, c.Measured/gib, c.Phase)
	}
	for _, r := range v.Running {
		fmt.Fprintf(&s, "%s ends %v\n", r.Job, r.Ends.Sub(v.Now))
	}
	return s.String()
}

// clone copies what a policy could get at through a view.
func clone(v sched.View) sched.View {
	v.Groups, v.Claims, v.Devices, v.Running = slices.Clone(v.Groups), slices.Clone(v.Claims), slices.Clone(v.Devices), slices.Clone(v.Running)
	for i := range v.Groups {
		v.Groups[i].Ready, v.Groups[i].Devices = slices.Clone(v.Groups[i].Ready), slices.Clone(v.Groups[i].Devices)
	}
	quota := make(map[string]int)
	for k, n := range v.Quota {
		quota[k] = n
	}
	if v.Quota != nil {
		v.Quota = quota
	}
	return v
}

// answersAll: each ready job is started once, refused once, or its group has a
// block; never more than slots and quotas allow.
func answersAll(t *rapid.T, v sched.View, plan sched.Plan) {
	answer := make(map[jobs.ID]bool)
	starts, by, all := make(map[string]int), make(map[string]int), 0
	for _, s := range plan.Start {
		if s.Job == "" {
			continue
		}
		r := readyJob(find(&v, s.Instance), s.Job)
		if r == nil || answer[s.Job] {
			t.Fatalf("start of %s", s.Job)
		}
		answer[s.Job] = true
		starts[s.Instance]++
		by[r.Submitter]++
		all++
	}
	for _, f := range plan.Fail {
		if f.Error == nil || f.Error.Message == "" || (f.Job != "" && answer[f.Job]) {
			t.Fatalf("failure %+v", f)
		}
		answer[f.Job] = true
	}
	if v.Slots >= 0 && all > v.Slots {
		t.Fatalf("%d starts, %d slots", all, v.Slots)
	}
	for who, n := range v.Quota {
		if by[who] > n {
			t.Fatalf("%d starts of %s, quota %d", by[who], who, n)
		}
	}
	for _, g := range v.Groups {
		if starts[g.Instance] > g.SlotsFree {
			t.Fatalf("%s: %d starts in %d slots", g.Instance, starts[g.Instance], g.SlotsFree)
		}
		if starts[g.Instance] > 0 && (!g.Known || !g.Enabled || g.Stopping != "" || g.Failed != "" || g.CoolUntil.After(now)) {
			t.Fatalf("%s may start nothing", g.Instance)
		}
		for _, r := range g.Ready {
			if !answer[r.ID] && plan.Block[g.Instance] == nil {
				t.Fatalf("%s has no answer: %s", r.ID, tell(v, plan))
			}
		}
	}
}

// staysWithinWhatIsFree: whatever starts take memory from has it, and without
// fresh facts nothing is taken, refused or stopped.
func staysWithinWhatIsFree(t *rapid.T, v sched.View, plan sched.Plan) {
	m := newModel(&v).after(plan)
	for _, c := range plan.Hold { // a new hold lets go of the old one
		m.unhold(c.Instance)
	}
	if !v.Fresh && slices.ContainsFunc(plan.Start, func(s sched.Start) bool { return s.Job == "" && s.Instance == v.MonitorInstance }) {
		delete(m.grown, resource.HostDevice) // it brings the facts, so it is loaded without
	}
	for pool := range m.grown {
		if m.grown[pool] && m.free[pool] < 0 {
			t.Fatalf("%s is overbooked by %d: %s", pool, -m.free[pool], tell(v, plan))
		}
	}
	if v.Fresh {
		return
	}
	for pool, grew := range m.grown {
		if grew {
			t.Fatalf("memory of %s is given away on a stale reading", pool)
		}
	}
	if len(plan.Evict)+len(plan.Release) > 0 || slices.ContainsFunc(plan.Fail, func(f sched.Failure) bool { return f.Error.Category == jobs.ResourceCat }) {
		t.Fatalf("decided on a stale reading: %s", tell(v, plan))
	}
}

// sitsWhereItMay: a worker that is started gets as many devices as it spans,
// each once, large enough and within its pins; one that is there stays.
func sitsWhereItMay(t *rapid.T, v sched.View, plan sched.Plan) {
	placed := make(map[string]bool)
	m := newModel(&v)
	for _, s := range plan.Start {
		g := find(&v, s.Instance)
		if g.Resident || placed[s.Instance] || !g.Need.GPU {
			if s.Devices != nil {
				t.Fatalf("%s is placed on %v", s.Instance, s.Devices)
			}
			continue
		}
		placed[s.Instance] = true
		if len(s.Devices) != max(g.Need.Devices, 1) {
			t.Fatalf("%s spans %v", s.Instance, s.Devices)
		}
		for i, id := range s.Devices {
			k := slices.IndexFunc(v.Devices, func(d sched.DeviceView) bool { return d.ID == id })
			if k < 0 || slices.Contains(s.Devices[:i], id) || !m.may(g, s.Job != "", &v.Devices[k]) {
				t.Fatalf("%s is placed on %v", s.Instance, s.Devices)
			}
		}
	}
}

// measuresAlone: where somebody measures, nobody else starts or works.
func measuresAlone(t *rapid.T, v sched.View, plan sched.Plan) {
	m := newModel(&v).after(plan)
	for _, s := range plan.Start {
		g := find(&v, s.Instance)
		if s.Job == "" && g.Resident { // there already: nothing starts
			continue
		}
		if s.Measure != (g.Need.GPU && !g.Need.Known) {
			t.Fatalf("start %+v of a need %+v", s, g.Need)
		}
		for _, d := range m.here[s.Instance] {
			if by := m.alone[d]; by != "" && by != s.Instance {
				t.Fatalf("%s starts on %s, where %s measures", s.Instance, d, by)
			}
			if !s.Measure {
				continue
			}
			for other, on := range m.here {
				if other != s.Instance && slices.Contains(on, d) && m.working(other) {
					t.Fatalf("%s measures on %s, where %s works", s.Instance, d, other)
				}
			}
		}
	}
}

// stopsOnlyWhoMayGo: victims are idle, nobody's furniture, and enough; none of
// them could stay.
func stopsOnlyWhoMayGo(t *rapid.T, v sched.View, plan sched.Plan) {
	m := newModel(&v).after(plan)
	victims := make(map[string][]string)
	for _, e := range plan.Evict {
		if e.Instance == e.Asker { // it moves
			if g := find(&v, e.Asker); g.IdleSince.IsZero() || g.Pinned || m.working(e.Asker) {
				t.Fatalf("%s may not be stopped to move", e.Asker)
			}
			continue
		}
		victims[e.Asker] = append(victims[e.Asker], e.Instance)
	}
	for _, r := range plan.Release {
		if !m.evictable(find(&v, r.Instance), find(&v, r.Asker)) {
			t.Fatalf("%s may not be asked to release for %s", r.Instance, r.Asker)
		}
	}
	seen := make(map[string]bool)
	for asker, set := range victims {
		a := find(&v, asker)
		if plan.Block[asker] == nil || m.started[asker] && !slices.ContainsFunc(plan.Start, func(s sched.Start) bool { return s.Instance == asker }) {
			t.Fatalf("%s does not wait for its victims", asker)
		}
		for _, name := range set {
			g := find(&v, name)
			if seen[name] || !m.evictable(g, a) || g.CanRelease {
				t.Fatalf("%s may not be evicted for %s: %s", name, asker, tell(v, plan))
			}
			seen[name] = true
			for _, d := range append(slices.Clone(g.Devices), resource.HostDevice) {
				if left, bound := v.SwapsLeft[d]; bound && left <= 0 && m.account(name, d)+1 > 1 {
					t.Fatalf("%s changes hands beyond its budget", d)
				}
			}
		}
		if !sufficient(m, plan, asker, set) {
			t.Fatalf("%v are not enough for %s: %s", set, asker, tell(v, plan))
		}
		if !a.Need.Known && a.Need.GPU || m.dropped { // or room that was kept came back later
			continue
		}
		for i := range set {
			if rest := slices.Delete(slices.Clone(set), i, i+1); sufficient(m, plan, asker, rest) {
				t.Fatalf("%v would have been enough of %v for %s: %s", rest, set, asker, tell(v, plan))
			}
		}
	}
}

// sufficient reports whether the end of the set makes the room that is held for
// the asker real, beside all that the plan starts and holds before it.
func sufficient(m *model, plan sched.Plan, asker string, set []string) bool {
	free := make(map[resource.DeviceID]resource.Bytes)
	old := make(map[string]bool)
	for k, n := range m.held { // a new hold lets go of the old one
		if k.instance == asker || slices.ContainsFunc(plan.Hold, func(c sched.Claim) bool { return c.Instance == k.instance }) {
			free[k.pool] += n
			old[k.instance] = true
		}
	}
	for pool, n := range m.free {
		free[pool] += n
	}
	for _, name := range set {
		for pool := range m.free {
			free[pool] += m.account(name, pool) + m.held[place{name, pool}]
		}
	}
	earlier := true
	for _, c := range plan.Hold { // of those that asked before
		if earlier = earlier && c.Instance != asker; earlier {
			free[c.Device] -= c.Bytes
		}
	}
	for _, e := range plan.Evict { // what they leave over of their victims
		if e.Asker == asker {
			break
		}
		for pool := range m.free {
			free[pool] += m.account(e.Instance, pool)
		}
	}
	for _, g := range m.v.Groups { // and what is being stopped anyway
		if g.Resident && g.Stopping != "" && !m.working(g.Instance) {
			for pool := range m.free {
				free[pool] += m.account(g.Instance, pool) + m.held[place{g.Instance, pool}]
			}
		}
	}
	need := make(map[resource.DeviceID]resource.Bytes)
	for _, c := range plan.Hold {
		if c.Instance == asker {
			need[c.Device] += c.Bytes
		}
	}
	for pool, n := range need {
		if n > free[pool] {
			return false
		}
	}
	return true
}

// blocksAreTrue re-evaluates each reason.
func blocksAreTrue(t *rapid.T, v sched.View, plan sched.Plan) {
	m := newModel(&v).after(plan).hold(plan)
	for name, b := range plan.Block {
		g := find(&v, name)
		if b.Sentence == "" || (!b.Earliest.IsZero() && !b.Earliest.After(now)) {
			t.Fatalf("block %+v", b)
		}
		ok := true
		switch b.Code {
		case "unknown_plugin":
			ok = !g.Known
		case "disabled":
			ok = !g.Enabled
		case "worker_failed":
			ok = g.Failed != ""
		case "cooling_down":
			ok = g.CoolUntil.After(now) && b.Earliest.Equal(g.CoolUntil)
		case "no_slot":
			ok = noSlotIsTrue(v, plan, m, g)
		case "quota":
			ok = quotaIsTrue(v, plan, g)
		case "stale_monitor":
			ok = !v.Fresh && (g.Need.GPU || g.Need.ResidentRAM+g.Need.ExecuteRAM > 0)
		case "resource":
			ok = memoryIsTrue(t, v, plan, m, g, b)
		default:
			ok = false
		}
		if !ok {
			t.Fatalf("%s: %s (%s) is not true; plan %s", name, b.Sentence, b.Code, tell(v, plan))
		}
	}
}

func starts(plan sched.Plan, instance string) int {
	n := 0
	for _, s := range plan.Start {
		if s.Job != "" && (instance == "" || s.Instance == instance) {
			n++
		}
	}
	return n
}

func noSlotIsTrue(v sched.View, plan sched.Plan, m *model, g *sched.GroupView) bool {
	return g.Stopping != "" || m.gone[g.Instance] || starts(plan, g.Instance) >= g.SlotsFree || (v.Slots >= 0 && starts(plan, "") >= v.Slots)
}

func quotaIsTrue(v sched.View, plan sched.Plan, g *sched.GroupView) bool {
	used := make(map[string]int)
	for _, s := range plan.Start {
		if r := readyJob(find(&v, s.Instance), s.Job); r != nil {
			used[r.Submitter]++
		}
	}
	return slices.ContainsFunc(g.Ready, func(r jobs.Ready) bool {
		n, bound := v.Quota[r.Submitter]
		return bound && used[r.Submitter] >= n && !slices.ContainsFunc(plan.Start, func(s sched.Start) bool { return s.Job == r.ID })
	})
}

// memoryIsTrue: it waits for victims, does not fit, or is kept out for one who
// came first and would be delayed.
func memoryIsTrue(t *rapid.T, v sched.View, plan sched.Plan, m *model, g *sched.GroupView, b *jobs.Block) bool {
	for _, n := range b.Needs {
		if n.Needed <= n.Available && g.Need.Known {
			return false
		}
	}
	if len(g.WaitingFor) > 0 {
		return slices.Equal(b.Holders, g.WaitingFor)
	}
	asks := func(name string) bool { return name == g.Instance }
	if slices.ContainsFunc(plan.Evict, func(e sched.Eviction) bool { return asks(e.Asker) }) ||
		slices.ContainsFunc(plan.Release, func(r sched.ReleaseAsk) bool { return asks(r.Asker) }) {
		return true // stopsOnlyWhoMayGo has looked at it
	}
	job := !g.LoadWanted || slices.ContainsFunc(plan.Start, func(s sched.Start) bool { return s.Job == "" && asks(s.Instance) }) ||
		slices.ContainsFunc(plan.Fail, func(f sched.Failure) bool { return f.Job == "" && asks(f.Instance) })
	if !m.fits(g, job) || m.dropped { // true when it was said; room that was kept came back later
		return true
	}
	if len(b.Holders) != 1 || plan.Block[b.Holders[0]] == nil || plan.Block[b.Holders[0]].Code != "resource" {
		return false
	}
	s := plan.Shadow
	if s.Instance != b.Holders[0] { // that of the other kind
		return true
	}
	if s.Draining || s.At.IsZero() || g.RunTimeP90 == 0 {
		return true
	}
	ends := now.Add(g.RunTimeP90)
	if !g.Resident {
		ends = ends.Add(g.LoadTime)
		stays := now.Add(max(30*time.Second, 2*g.LoadTime)).After(s.At) || g.Pinned || g.Instance == v.MonitorInstance || g.Queued > 1 || g.LoadWanted
		if g.LoadTime == 0 || stays {
			return true
		}
	}
	if g.Loading {
		return true
	}
	return ends.After(s.At) || !job
}

// shadowIsKept: what starts after the shadow's job and ends later leaves it
// room at the time that was promised.
func shadowIsKept(t *rapid.T, v sched.View, plan sched.Plan) {
	s := plan.Shadow
	if s == nil {
		return
	}
	g := find(&v, s.Instance)
	if plan.Block[s.Instance] == nil {
		t.Fatalf("a shadow for %s, which does not wait", s.Instance)
	}
	first := readyJob(g, s.Job)
	m := newModel(&v)
	for _, st := range plan.Start {
		o := find(&v, st.Instance)
		if roomWasMade(&v, o) {
			m.after(sched.Plan{Start: []sched.Start{st}})
			continue
		}
		r := readyJob(o, st.Job)
		after := r != nil && first != nil && (total(&v, r) < total(&v, first) || (total(&v, r) == total(&v, first) && r.Seq > first.Seq))
		m.after(sched.Plan{Start: []sched.Start{st}})
		on := m.here[st.Instance]
		if !after || !o.Need.GPU || !slices.ContainsFunc(on, func(d resource.DeviceID) bool { return slices.Contains(s.Devices, d) }) {
			continue
		}
		ends := now.Add(o.RunTimeP90) // before its worker may be stopped anyway
		if s.Draining && (o.RunTimeP90 == 0 || s.At.IsZero() || ends.After(s.At)) {
			t.Fatalf("%s starts on %v, which drains for %s", st.Job, on, s.Job)
		}
	}
	if s.At.IsZero() || !s.At.After(now) {
		return
	}
	m.v = withStarts(v, plan)
	m.hold(plan)
	for _, d := range s.Devices {
		if n := m.takes(g, s.Job != "", d); n > m.could(g, d, s.At) {
			t.Fatalf("%s needs %d on %s at %v, at most %d can be free: %s", s.Instance, n, d, s.At.Sub(now), m.could(g, d, s.At), tell(v, plan))
		}
	}
}

// roomWasMade: workers were stopped for g, before the shadow was there.
func roomWasMade(v *sched.View, g *sched.GroupView) bool {
	return (!g.Lingering || g.CanRelease) && slices.ContainsFunc(v.Claims, func(c sched.Claim) bool {
		return c.Owner == g.Instance && c.Instance == g.Instance && c.Phase == sched.PhaseReserved && c.Bytes > 0
	})
}

// withStarts is the view with the plan's starts at work.
func withStarts(v sched.View, plan sched.Plan) *sched.View {
	v.Running = slices.Clone(v.Running)
	m := newModel(&v)
	for _, s := range plan.Start {
		g := find(&v, s.Instance)
		m.after(sched.Plan{Start: []sched.Start{s}})
		r := sched.RunView{Job: s.Job, Instance: s.Instance, Since: now, Devices: m.here[s.Instance], VRAM: g.Need.ExecuteVRAM, RAM: g.Need.ExecuteRAM}
		if s.Job == "" {
			continue
		}
		if g.RunTimeP90 > 0 && (g.Resident && !g.Loading || g.LoadTime > 0) {
			r.Ends = now.Add(g.RunTimeP90)
			if !g.Resident || g.Loading {
				r.Ends = r.Ends.Add(g.LoadTime)
			}
		}
		if r.Ends.IsZero() && g.Resident { // its worker's turn: nobody can say more
			r.Ends = now
		}
		v.Running = append(v.Running, r)
	}
	return &v
}
