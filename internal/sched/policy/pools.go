package policy

import (
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// pass is one Decide of Reserve: the view as pools of memory and guests on
// them, what is left of it, and the plan so far.
type pass struct {
	desk
	o *ReserveOptions

	pools    []pool    // host memory first, then the devices in the order of the view
	shared   bool      // some device shares its memory with the host
	guests   []guest   // beside View.Groups
	accounts []account // guests × pools
	works    []work    // what runs, and what this plan starts
	byName   map[string]int

	line     line
	slots    int // run slots of the machine; -1: no bound
	quota    map[string]int
	quotaOwn bool
	most     float64
	shadows  []shadow // at most one of a GPU job and one of a CPU-only job

	// scratch of the searches
	order  []candidate
	events []event
	effort int // steps that searches for victims may still take in this pass
}

// host is the place of host memory among the pools.
const host = 0

// pool is one memory: of the host or of a device.
type pool struct {
	id    resource.DeviceID
	dev   *sched.DeviceView // nil: the host
	free  resource.Bytes
	total resource.Bytes // what could ever be free
	// shared pools (the host and its unified devices) are one memory.
	shared bool
	// measures is the instance that has the device to itself; "": nobody.
	measures string
	swaps    int // changes of hands left; -1: no bound
	// coming is what workers that are being stopped, or were, will bring back.
	coming resource.Bytes
}

// guest is what a pass knows of a group beyond the view.
type guest struct {
	on      []int  // device pools that its worker is on, or will be by this plan
	here    bool   // its worker is there, or will be by this plan
	started bool   // this plan starts something on it
	gone    string // for whom this plan stops it, or asks it to release; "": it does not
	busy    int    // runs, also those of this plan
	ready   []ranked
}

// account is one worker's side of one pool.
type account struct {
	base     resource.Bytes // claimed by the worker and its jobs
	measured resource.Bytes // seen in use
	held     resource.Bytes // kept for it until its victims are gone
	lingers  resource.Bytes // of an ended run, on its way back unless the worker runs again
}

func (a *account) size() resource.Bytes { return max(a.base, a.measured) }

// growth is what n more bytes of claims add to the account: a worker that
// already uses more than it claims has that much to spare.
func (a *account) growth(n resource.Bytes) resource.Bytes {
	return max(a.base+n, a.measured) - a.size()
}

// work is a run: of the view, or one that this plan starts.
type work struct {
	group     int
	ends      time.Time // zero: nobody knows
	since     time.Time
	on        []int
	vram, ram resource.Bytes
}

func newPass(o *ReserveOptions, v sched.View) *pass {
	w := &pass{desk: desk{view: v}, o: o, slots: v.Slots, quota: v.Quota, most: mostUsed(&v), effort: searchEffort}
	w.addPools()
	w.byName = make(map[string]int, len(v.Groups))
	w.guests = make([]guest, len(v.Groups))
	w.accounts = make([]account, len(v.Groups)*len(w.pools))
	w.line = make(line, 0, len(v.Groups))
	for i := range v.Groups {
		g := &v.Groups[i]
		w.byName[g.Instance] = i
		w.guests[i].here = g.Resident
		if g.Resident {
			w.guests[i].on = w.places(g.Devices)
		}
	}
	for i := range v.Groups { // who was asked to release is left alone until it has answered
		for _, name := range v.Groups[i].WaitingFor {
			if k, ok := w.byName[name]; ok && w.guests[k].here {
				w.guests[k].gone = v.Groups[i].Instance
			}
		}
	}
	w.addClaims()
	w.addLingering()
	w.addMeasuring()
	w.addRuns()
	for i := range v.Groups {
		if v.Groups[i].Stopping != "" && v.Groups[i].Resident && w.guests[i].busy == 0 {
			w.leaves(i)
		}
	}
	w.rankAll()
	return w
}

func (w *pass) addPools() {
	v := &w.view
	w.pools = make([]pool, 1, len(v.Devices)+1)
	w.pools[host] = pool{id: resource.HostDevice, free: v.FreeRAM, total: v.TotalRAM, swaps: w.swapsOf(resource.HostDevice)}
	for i := range v.Devices {
		d := &v.Devices[i]
		p := pool{id: d.ID, dev: d, free: d.Free, total: d.Total - d.Margin, measures: d.Exclusive, swaps: w.swapsOf(d.ID)}
		if d.Unified {
			p.shared, w.shared, w.pools[host].shared = true, true, true
		}
		w.pools = append(w.pools, p)
	}
}

func (w *pass) swapsOf(id resource.DeviceID) int {
	if n, ok := w.view.SwapsLeft[id]; ok {
		return max(n, 0)
	}
	return -1
}

// addClaims fills the accounts. What is on its way back (releasing,
// quarantined) is nobody's: no worker's end would bring it.
func (w *pass) addClaims() {
	for i := range w.view.Claims {
		c := &w.view.Claims[i]
		g, ok := w.byName[instanceOf(c)]
		p := w.poolOf(c.Device)
		if p >= 0 && c.Phase == sched.PhaseReleasing {
			w.comes(p, max(c.Bytes, c.Measured))
			continue
		}
		if !ok || p < 0 || c.Kind == sched.KindLease || c.Phase == sched.PhaseQuarantined {
			continue
		}
		a := w.account(g, p)
		if isHold(c, w.guests[g].here) {
			a.held += c.Bytes
			continue
		}
		a.base += c.Bytes
		a.measured = max(a.measured, c.Measured)
		if p != host && w.guests[g].here && !slices.Contains(w.guests[g].on, p) && len(w.view.Groups[g].Devices) == 0 {
			w.guests[g].on = append(w.guests[g].on, p)
		}
	}
}

// addMeasuring marks the devices that are kept for those who will measure there.
func (w *pass) addMeasuring() {
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		if !g.Need.GPU || g.Need.Known || (g.Lingering && len(g.WaitingFor) == 0) {
			continue
		}
		for p := host + 1; p < len(w.pools); p++ {
			if w.account(i, p).held > 0 && w.pools[p].measures == "" {
				w.pools[p].measures = g.Instance
			}
		}
	}
}

// addLingering notes what ended runs are about to bring back. A worker that
// caches keeps it.
func (w *pass) addLingering() {
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		if !g.Lingering || g.CanRelease || !w.guests[i].here || len(g.WaitingFor) > 0 {
			continue
		}
		for p := host + 1; p < len(w.pools); p++ {
			a := w.account(i, p)
			a.lingers = a.size() - a.base + a.held
		}
	}
}

// dropLingering stops counting on what a group's ended runs left: it gives all
// that it has.
func (w *pass) dropLingering(group int) {
	for p := range w.pools {
		w.account(group, p).lingers = 0
	}
}

// reuse takes off what a group's ended runs left what its new run takes of it.
func (w *pass) reuse(group int) {
	for p := range w.pools {
		if a := w.account(group, p); a.lingers > 0 {
			a.lingers = a.size() - a.base
		}
	}
}

func instanceOf(c *sched.Claim) string {
	if c.Instance == "" && c.Kind == sched.KindResident {
		return c.Owner
	}
	return c.Instance
}

// isHold reports whether c is room kept for a start to come.
func isHold(c *sched.Claim, resident bool) bool {
	return c.Phase == sched.PhaseReserved && c.Owner == instanceOf(c) && (c.Kind == sched.KindExecute || !resident)
}

func (w *pass) addRuns() {
	w.works = make([]work, 0, len(w.view.Running)+8)
	for i := range w.view.Running {
		r := &w.view.Running[i]
		g, ok := w.byName[r.Instance]
		if !ok {
			g = -1
		} else {
			w.guests[g].busy++
		}
		w.works = append(w.works, work{group: g, ends: r.Ends, since: r.Since, on: w.places(r.Devices), vram: r.VRAM, ram: r.RAM})
	}
}

func (w *pass) account(group, p int) *account { return &w.accounts[group*len(w.pools)+p] }

// poolOf is the place of a device's pool, -1 for one that the monitor does not see.
func (w *pass) poolOf(id resource.DeviceID) int {
	for p := range w.pools {
		if w.pools[p].id == id {
			return p
		}
	}
	return -1
}

func (w *pass) places(ids []resource.DeviceID) []int {
	if len(ids) == 0 {
		return nil
	}
	out := make([]int, 0, len(ids))
	for _, id := range ids {
		if p := w.poolOf(id); p > host {
			out = append(out, p)
		}
	}
	return out
}

func (w *pass) ids(on []int) []resource.DeviceID {
	out := make([]resource.DeviceID, len(on))
	for i, p := range on {
		out[i] = w.pools[p].id
	}
	return out
}

// give puts n bytes back into a pool, and into those that share its memory.
func (w *pass) give(p int, n resource.Bytes) {
	if !w.pools[p].shared {
		w.pools[p].free += n
		return
	}
	for q := range w.pools {
		if w.pools[q].shared {
			w.pools[q].free += n
		}
	}
}

// leaves notes that group i's worker is on its way out.
func (w *pass) leaves(i int) {
	w.dropLingering(i)
	for p := range w.pools {
		w.pools[p].coming += w.yield(i, p)
	}
}

// comes notes n bytes of pool p, and of those that share its memory, on their
// way back.
func (w *pass) comes(p int, n resource.Bytes) {
	for q := range w.pools {
		if q == p || (w.pools[p].shared && w.pools[q].shared) {
			w.pools[q].coming += n
		}
	}
}

// back is what of a pool is on its way back, for a group that waits: also what
// ended runs of others left, unless those run again.
func (w *pass) back(group, p int) resource.Bytes {
	n := w.pools[p].coming
	for i := range w.guests {
		for q := range w.pools {
			if i != group && (q == p || (w.pools[p].shared && w.pools[q].shared)) {
				n += w.account(i, q).lingers
			}
		}
	}
	return n
}

// avail is what a group may use of a pool: what is free and what is held for it.
func (w *pass) avail(group, p int) resource.Bytes {
	n := w.pools[p].free
	if !w.pools[p].shared {
		return n + w.account(group, p).held
	}
	for q := range w.pools {
		if w.pools[q].shared {
			n += w.account(group, q).held
		}
	}
	return n
}

// yield is what the end of a group's worker brings back to a pool, with what is
// kept for its next run.
func (w *pass) yield(group, p int) resource.Bytes {
	n := w.holding(group, p)
	for q := range w.pools {
		if q == p || (w.pools[p].shared && w.pools[q].shared) {
			n += w.account(group, q).held
		}
	}
	return n
}

// holding is what a group's worker has of a pool.
func (w *pass) holding(group, p int) (n resource.Bytes) {
	for q := range w.pools {
		if q == p || (w.pools[p].shared && w.pools[q].shared) {
			n += w.account(group, q).size()
		}
	}
	return n
}

// missing is what pool p lacks for the ask with its worker on the devices on;
// 0 or less when it is enough. An ask that takes nothing lacks nothing.
func (w *pass) missing(a *ask, p int, on []int) resource.Bytes {
	take := w.takes(a, p, on)
	if take <= 0 {
		return 0
	}
	return take - w.avail(a.group, p)
}

// takes is what the ask takes from pool p, over all that share its memory.
func (w *pass) takes(a *ask, p int, on []int) resource.Bytes {
	if !w.pools[p].shared {
		if p == host {
			return w.account(a.group, host).growth(a.ram())
		}
		return w.account(a.group, p).growth(a.vram())
	}
	n := w.account(a.group, host).growth(a.ram())
	for _, q := range on {
		if w.pools[q].shared {
			n += w.account(a.group, q).growth(a.vram())
		}
	}
	return n
}

// dropHolds gives back what was held for a group: it starts, or is held anew.
func (w *pass) dropHolds(group int) {
	for p := range w.pools {
		a := w.account(group, p)
		if a.held != 0 {
			w.give(p, a.held)
			a.held = 0
		}
	}
}

// occupy books a start.
func (w *pass) occupy(a *ask) {
	w.dropHolds(a.group)
	w.book(a, host, a.ram())
	for _, p := range a.on {
		w.book(a, p, a.vram())
		if a.measure {
			w.pools[p].measures = a.g.Instance
		}
	}
	w.reuse(a.group)
	gu := &w.guests[a.group]
	gu.here, gu.started, gu.on = true, true, a.on
	if a.job == nil {
		return
	}
	gu.busy++
	w.works = append(w.works, work{group: a.group, since: w.view.Now, ends: w.ends(a), on: a.on, vram: a.execVRAM, ram: a.execRAM})
}

func (w *pass) book(a *ask, p int, n resource.Bytes) {
	acc := w.account(a.group, p)
	w.give(p, -acc.growth(n))
	acc.base += n
}

// hold keeps the room for an ask whose victims have to go first.
func (w *pass) hold(a *ask) {
	w.dropHolds(a.group)
	keep := func(p int, n resource.Bytes) {
		if n <= 0 {
			return
		}
		w.account(a.group, p).held = n
		w.give(p, -n)
	}
	keep(host, w.account(a.group, host).growth(a.ram()))
	for _, p := range a.on {
		keep(p, w.account(a.group, p).growth(a.vram()))
	}
}

// matches reports whether a device is named in a list of UUIDs or indices.
func matches(list []string, d *sched.DeviceView) bool {
	for _, s := range list {
		if s == string(d.ID) || s == strconv.Itoa(d.Index) {
			return true
		}
	}
	return false
}
