package policy_test

import (
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// model does the ledger's sums over again, slowly and without looking at the
// policy's code: what is free after a plan, and who could start then.
type model struct {
	v    *sched.View
	free map[resource.DeviceID]resource.Bytes
	// by instance and pool
	base, used, held map[place]resource.Bytes
	here             map[string][]resource.DeviceID // workers, also those of the plan
	started          map[string]bool
	gone             map[string]bool
	alone            map[resource.DeviceID]string // who has a device to itself
	grown            map[resource.DeviceID]bool   // pools that starts took memory from
	dropped          bool                         // a hold was let go by its owner's start, or for another
}

type place struct {
	instance string
	pool     resource.DeviceID
}

func newModel(v *sched.View) *model {
	m := &model{v: v, free: map[resource.DeviceID]resource.Bytes{resource.HostDevice: v.FreeRAM},
		base: make(map[place]resource.Bytes), used: make(map[place]resource.Bytes), held: make(map[place]resource.Bytes),
		here: make(map[string][]resource.DeviceID), started: make(map[string]bool), gone: make(map[string]bool),
		alone: make(map[resource.DeviceID]string), grown: make(map[resource.DeviceID]bool)}
	for _, d := range v.Devices {
		m.free[d.ID] = d.Free
		m.alone[d.ID] = d.Exclusive
	}
	for _, g := range v.Groups {
		if g.Resident {
			m.here[g.Instance] = g.Devices
		}
	}
	for _, g := range v.Groups {
		for _, name := range g.WaitingFor {
			m.gone[name] = true
		}
	}
	for _, c := range v.Claims {
		k := place{c.Instance, c.Device}
		if c.Owner == c.Instance && c.Phase == sched.PhaseReserved {
			m.held[k] += c.Bytes
			continue
		}
		m.base[k] += c.Bytes
		m.used[k] = max(m.used[k], c.Measured)
	}
	return m
}

// after applies a plan's starts, stops and holds.
func (m *model) after(p sched.Plan) *model {
	for _, s := range p.Start {
		for k := range m.held {
			m.dropped = m.dropped || k.instance == s.Instance
		}
		m.unhold(s.Instance)
		if _, ok := m.here[s.Instance]; !ok {
			m.here[s.Instance] = s.Devices
		}
		m.started[s.Instance] = m.started[s.Instance] || s.Job != "" || !find(m.v, s.Instance).Resident
		for _, c := range s.Claims {
			k := place{s.Instance, c.Device}
			before := max(m.base[k], m.used[k])
			m.base[k] += c.Bytes
			grew := max(m.base[k], m.used[k]) - before
			m.free[c.Device] -= grew
			m.grown[c.Device] = m.grown[c.Device] || grew > 0
		}
		if s.Measure {
			for _, d := range m.here[s.Instance] {
				m.alone[d] = s.Instance
			}
		}
	}
	for _, e := range p.Evict {
		m.gone[e.Instance] = true
	}
	for _, r := range p.Release {
		m.gone[r.Instance] = true
	}
	return m
}

// hold applies the plan's holds; an asker's new ones replace its old.
func (m *model) hold(p sched.Plan) *model {
	for _, c := range p.Hold {
		for k := range m.held {
			m.dropped = m.dropped || k.instance == c.Instance
		}
		m.unhold(c.Instance)
	}
	for _, c := range p.Hold {
		m.held[place{c.Instance, c.Device}] += c.Bytes
		m.free[c.Device] -= c.Bytes
	}
	return m
}

func (m *model) unhold(instance string) {
	for k, n := range m.held {
		if k.instance == instance {
			m.free[k.pool] += n
			delete(m.held, k)
		}
	}
}

// account is what a worker has of a pool.
func (m *model) account(instance string, pool resource.DeviceID) resource.Bytes {
	k := place{instance, pool}
	return max(m.base[k], m.used[k])
}

// takes is what a start of g's next job (or its load) adds to a pool.
func (m *model) takes(g *sched.GroupView, job bool, pool resource.DeviceID) resource.Bytes {
	_, here := m.here[g.Instance]
	var n resource.Bytes
	if pool == resource.HostDevice {
		if !here {
			n += g.Need.ResidentRAM
		}
		if job {
			n += g.Need.ExecuteRAM
		}
	} else {
		if !here {
			n += g.Need.ResidentVRAM
		}
		if job {
			n += g.Need.ExecuteVRAM
		}
	}
	k := place{g.Instance, pool}
	return max(m.base[k]+n, m.used[k]) - m.account(g.Instance, pool)
}

func (m *model) room(g *sched.GroupView, job bool, pool resource.DeviceID, more resource.Bytes) bool {
	n := m.takes(g, job, pool)
	return n <= 0 || n <= m.free[pool]+m.held[place{g.Instance, pool}]+more
}

// may reports whether a device is one that g may use at all.
func (m *model) may(g *sched.GroupView, job bool, d *sched.DeviceView) bool {
	if len(g.Pin) > 0 && !slices.Contains(g.Pin, string(d.ID)) && !slices.Contains(g.Pin, strconv.Itoa(d.Index)) {
		return false
	}
	n := g.Need.ResidentVRAM
	if job {
		n += g.Need.ExecuteVRAM
	}
	return n <= d.Total-d.Margin
}

// open reports whether g could start on a device as far as others let it.
func (m *model) open(g *sched.GroupView, d resource.DeviceID) bool {
	if by := m.alone[d]; by != "" && (by != g.Instance || m.working(g.Instance)) {
		return false
	}
	if g.Need.Known {
		return true
	}
	if m.free[d]+m.held[place{g.Instance, d}] <= 0 {
		return false
	}
	for i := range m.v.Groups {
		o := &m.v.Groups[i]
		if _, here := m.here[o.Instance]; !here && o.Instance != g.Instance && m.held[place{o.Instance, d}] > 0 {
			return false
		}
		if o.Instance == g.Instance || !slices.Contains(m.here[o.Instance], d) {
			continue
		}
		if m.working(o.Instance) || m.gone[o.Instance] || o.Stopping != "" || o.Loading || !(o.Pinned || o.Instance == m.v.MonitorInstance) {
			return false
		}
	}
	return true
}

func (m *model) working(instance string) bool {
	return m.started[instance] || slices.ContainsFunc(m.v.Running, func(r sched.RunView) bool { return r.Instance == instance })
}

// fits reports whether g's next job (or load) could start now, but for what is
// kept for others.
func (m *model) fits(g *sched.GroupView, job bool) bool {
	if !m.room(g, job, resource.HostDevice, 0) {
		return false
	}
	if !g.Need.GPU {
		return true
	}
	on, here := m.here[g.Instance]
	ok := 0
	for i := range m.v.Devices {
		d := &m.v.Devices[i]
		if here && !slices.Contains(on, d.ID) || !here && !m.may(g, job, d) {
			continue
		}
		if m.open(g, d.ID) && m.room(g, job, d.ID, 0) {
			ok++
		}
	}
	if here {
		return ok >= len(on)
	}
	return ok >= max(g.Need.Devices, 1)
}

// evictable reports whether the rules let g's worker be stopped for asker now.
func (m *model) evictable(g, asker *sched.GroupView) bool {
	switch {
	case g.Instance == asker.Instance || !g.Resident || g.Loading || g.IdleSince.IsZero() || g.Stopping != "" || g.Pinned ||
		g.Instance == m.v.MonitorInstance || g.LoadWanted || g.Measuring || len(g.WaitingFor) > 0 || m.working(g.Instance):
		return false
	}
	if firstPriority(asker) > topPriority(g) {
		return true
	}
	here := m.v.Now.Sub(g.ResidentSince)
	if here < max(30*time.Second, 2*g.LoadTime) {
		return false
	}
	waited := m.v.Now.Sub(asker.WaitSince)
	if asker.WaitSince.IsZero() {
		waited = 0
	}
	if !g.Enabled || g.Queued == 0 {
		pause := time.Duration(0)
		if g.Uses >= 60 {
			pause = 2 * time.Duration(float64(time.Hour)/g.Uses)
		}
		hard := 10 * time.Minute
		if asker.RunTime > 0 {
			hard = min(max(3*asker.RunTime, 2*time.Minute), hard)
		}
		idle := m.v.Now.Sub(g.LastUsed) // the most patient of the asker's jobs is not looked for here
		return !g.Enabled || idle >= pause || waited >= hard
	}
	load := func(g *sched.GroupView) time.Duration {
		if g.LoadTime == 0 {
			return 10 * time.Second
		}
		return g.LoadTime
	}
	return here >= min(4*(load(g)+load(asker)), 10*time.Minute) && (waited >= time.Minute || g.Streak >= 16)
}

// topPriority is the class of a worker, firstPriority that of whoever asks: the
// highest of its jobs is an upper bound, its first is not known to the model.
func topPriority(g *sched.GroupView) int {
	top := 0
	if len(g.Ready) == 0 && now.Sub(g.LastUsed) < 10*time.Minute {
		top = g.LastPriority
	}
	for i, r := range g.Ready {
		if i == 0 || r.Priority > top {
			top = r.Priority
		}
	}
	return top
}

func firstPriority(g *sched.GroupView) int {
	if g.LoadWanted {
		return max(topPriority(g), 0)
	}
	return topPriority(g)
}

// could is all that may be free on a device for a job at a time: what is free,
// what ends by then, and every worker that may be gone by then.
func (m *model) could(g *sched.GroupView, pool resource.DeviceID, at time.Time) resource.Bytes {
	n := m.free[pool] + m.held[place{g.Instance, pool}]
	for i := range m.v.Groups {
		o := &m.v.Groups[i]
		if _, here := m.here[o.Instance]; !here || o.Instance == g.Instance {
			continue
		}
		if m.stays(o) || m.busyAt(o, at) {
			n += m.lingers(o, pool)
			continue
		}
		n += m.account(o.Instance, pool) + m.held[place{o.Instance, pool}]
	}
	for _, r := range m.v.Running {
		o := find(m.v, r.Instance)
		gone := o != nil && r.Instance != g.Instance && !m.stays(o) && !m.busyAt(o, at)
		if gone || r.Ends.IsZero() || r.Ends.After(at) {
			continue
		}
		if pool == resource.HostDevice {
			n += r.RAM
		} else if slices.Contains(r.Devices, pool) {
			n += r.VRAM
		}
	}
	return n
}

// lingers is what ended runs of g are about to bring back to a pool, beside what
// a new one takes of it.
func (m *model) lingers(g *sched.GroupView, pool resource.DeviceID) resource.Bytes {
	if !g.Lingering || g.CanRelease || len(g.WaitingFor) > 0 || pool == resource.HostDevice {
		return 0
	}
	k := place{g.Instance, pool}
	return max(m.used[k]-m.base[k], 0) + m.held[k]
}

// stays reports whether a worker never makes way.
func (m *model) stays(g *sched.GroupView) bool {
	return (g.Pinned || g.Instance == m.v.MonitorInstance) && g.Stopping == ""
}

// busyAt reports whether a worker is still at work at a time.
func (m *model) busyAt(g *sched.GroupView, at time.Time) bool {
	return slices.ContainsFunc(m.v.Running, func(r sched.RunView) bool {
		return r.Instance == g.Instance && (r.Ends.IsZero() || r.Ends.After(at))
	})
}

func find(v *sched.View, instance string) *sched.GroupView {
	for i := range v.Groups {
		if v.Groups[i].Instance == instance {
			return &v.Groups[i]
		}
	}
	return nil
}

func readyJob(g *sched.GroupView, id jobs.ID) *jobs.Ready {
	for i := range g.Ready {
		if g.Ready[i].ID == id {
			return &g.Ready[i]
		}
	}
	return nil
}
