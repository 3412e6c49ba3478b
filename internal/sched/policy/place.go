package policy

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// ask is what one start takes on top of what its worker has.
type ask struct {
	group   int
	g       *sched.GroupView
	need    sched.Need // what is reckoned with
	job     *ranked    // nil: the load that was asked for
	want    int        // devices it spans; 0: none
	here    bool       // its worker is there
	measure bool       // nobody knows what it takes: the devices have to be its own
	late    bool       // it does not start at once: victims have to go first

	resVRAM, execVRAM resource.Bytes
	resRAM, execRAM   resource.Bytes

	on []int // device pools that were chosen
	// why it found no place: the device that came closest, and what is in the way.
	obstacle obstacle
}

func (a *ask) vram() resource.Bytes { return a.resVRAM + a.execVRAM }
func (a *ask) ram() resource.Bytes  { return a.resRAM + a.execRAM }

// ready is the job, nil for a load.
func (a *ask) ready() *jobs.Ready {
	if a.job == nil {
		return nil
	}
	return a.job.Ready
}

func (a *ask) priority() int {
	if a.job == nil {
		return 0
	}
	return a.job.Priority
}

// facts reports whether the start rests on anything that a monitor must vouch
// for: it takes memory, or needs a device chosen for it.
func (a *ask) facts() bool {
	return a.vram() > 0 || a.ram() > 0 || a.measure || (a.want > 0 && !a.here)
}

func (w *pass) ask(i int, job *ranked) ask {
	g := &w.view.Groups[i]
	a := ask{group: i, g: g, need: w.temper(g), job: job, here: w.guests[i].here}
	n := &a.need
	if job != nil {
		a.execRAM = n.ExecuteRAM
	}
	if !a.here {
		a.resRAM = n.ResidentRAM
	}
	if !n.GPU {
		return a
	}
	a.want = max(n.Devices, 1)
	a.measure = !n.Known
	if job != nil {
		a.execVRAM = n.ExecuteVRAM
	}
	if !a.here {
		a.resVRAM = n.ResidentVRAM
	}
	return a
}

// temper cuts what was learned or measured to what the largest device has: it
// ran on one, so a sum beyond that is caution (peaks of different runs, raised
// after an OOM), and waiting or failing would not make it truer. The author's
// word, and bounds found by running out of memory alone, stand as they are.
// Memory that others hold all the time (a display) is taken off.
func (w *pass) temper(g *sched.GroupView) sched.Need {
	n := g.Need
	if !n.GPU || (n.Source != sched.SourceProfile && n.Source != sched.SourceMeasured) {
		return n
	}
	var most resource.Bytes
	for p := host + 1; p < len(w.pools); p++ {
		if len(g.Pin) == 0 || matches(g.Pin, w.pools[p].dev) {
			most = max(most, w.pools[p].total-min(w.pools[p].dev.External, w.pools[p].total/alwaysThere))
		}
	}
	if most > 0 && n.ResidentVRAM+n.ExecuteVRAM > most {
		n.ResidentVRAM = min(n.ResidentVRAM, most)
		n.ExecuteVRAM = most - n.ResidentVRAM
	}
	return n
}

// alwaysThere is the part of a device (one in so many) that others may hold
// without anybody waiting for it to come back.
const alwaysThere = 16

// claims is what the start sets aside, for the ledger.
func (w *pass) claims(a *ask) []sched.Claim {
	var out []sched.Claim
	add := func(kind, owner string, p int, n resource.Bytes) {
		out = append(out, sched.Claim{Owner: owner, Kind: kind, Instance: a.g.Instance, Device: w.pools[p].id, Bytes: n, Phase: sched.PhaseReserved})
	}
	if !a.here {
		if a.resRAM > 0 {
			add(sched.KindResident, a.g.Instance, host, a.resRAM)
		}
		for _, p := range a.on {
			add(sched.KindResident, a.g.Instance, p, a.resVRAM)
		}
	}
	if a.job == nil {
		return out
	}
	if a.execRAM > 0 {
		add(sched.KindExecute, string(a.job.ID), host, a.execRAM)
	}
	if a.execVRAM > 0 {
		for _, p := range a.on {
			add(sched.KindExecute, string(a.job.ID), p, a.execVRAM)
		}
	}
	return out
}

// obstacle is what keeps an ask from a place; the later ones are closer to it.
type obstacle struct {
	kind  int
	pool  int
	bytes resource.Bytes // missing there
	by    string         // the instance in the way
}

const (
	noObstacle   = iota
	tooSmall     // no device is there that could take it
	lacksMemory  // bytes are missing
	beingUsed    // measuring needs the device alone, and by works there
	beingMeasure // by measures there
	kept         // the room is kept for by, which came first
)

func (a *ask) note(o obstacle) {
	b := &a.obstacle
	if o.kind > b.kind || (o.kind == b.kind && o.bytes < b.bytes) {
		*b = o
	}
}

// candidate is a device that an ask might take, with what decides between them.
type candidate struct {
	pool int
	held bool // room is held for the ask there
	wish int  // 0 preferred, 1 neither, 2 to be avoided
	kept bool // a shadow is on it
	free resource.Bytes
}

// place looks for devices on which the ask can start now. It leaves them in
// a.on, or says in a.obstacle what came in the way.
func (w *pass) place(a *ask) bool {
	a.on, a.obstacle = nil, obstacle{}
	if a.want > 0 {
		if a.here {
			a.on = w.guests[a.group].on
			for _, p := range a.on {
				if o := w.hinders(a, p, a.on); o.kind != noObstacle {
					a.note(o)
					return false
				}
			}
		} else if !w.choose(a) {
			return false
		}
	}
	if n := w.missing(a, host, a.on); n > 0 {
		a.note(obstacle{kind: lacksMemory, pool: host, bytes: n})
		return false
	}
	if by := w.keptFrom(a, host); by != "" {
		a.note(obstacle{kind: kept, pool: host, by: by})
		return false
	}
	return true
}

// choose fills a.on with the devices that suit best among those that are
// enough: the fullest that still takes it, so that the emptiest stay whole.
func (w *pass) choose(a *ask) bool {
	w.candidates(a)
	on := make([]int, 0, a.want)
	for i := range w.order {
		p := w.order[i].pool
		o := w.hinders(a, p, append(on, p))
		if o.kind != noObstacle {
			a.note(o)
			continue
		}
		if on = append(on, p); len(on) == a.want {
			slices.Sort(on)
			a.on = on
			return true
		}
	}
	if len(w.order) < a.want {
		a.note(obstacle{kind: tooSmall})
	}
	return false
}

// candidates fills w.order with the devices that a could ever take, best first.
func (w *pass) candidates(a *ask) {
	w.order = w.order[:0]
	for p := host + 1; p < len(w.pools); p++ {
		if !w.suits(a, p) {
			continue
		}
		d := w.pools[p].dev
		c := candidate{pool: p, held: w.account(a.group, p).held > 0, wish: 1, free: w.avail(a.group, p)}
		switch {
		case matches(a.g.Prefer, d):
			c.wish = 0
		case matches(a.g.Avoid, d):
			c.wish = 2
		}
		for i := range w.shadows {
			c.kept = c.kept || slices.Contains(w.shadows[i].ask.on, p)
		}
		w.order = append(w.order, c)
	}
	roomy := a.measure || a.vram() == 0 // no figure: where there is most
	slices.SortStableFunc(w.order, func(x, y candidate) int {
		switch {
		case x.held != y.held:
			return first(x.held)
		case x.wish != y.wish:
			return x.wish - y.wish
		case x.kept != y.kept:
			return first(y.kept)
		case x.free != y.free:
			return first((x.free < y.free) != roomy)
		}
		return x.pool - y.pool
	})
}

func first(yes bool) int {
	if yes {
		return -1
	}
	return 1
}

// suits reports whether a could ever sit on device pool p: it may, and the
// device is large enough when everything else is gone.
func (w *pass) suits(a *ask, p int) bool {
	if len(a.g.Pin) > 0 && !matches(a.g.Pin, w.pools[p].dev) {
		return false
	}
	return w.whole(a, p) <= w.pools[p].total
}

// whole is what a's worker and one job of it take of an otherwise empty pool.
func (w *pass) whole(a *ask, p int) resource.Bytes {
	n := &a.need
	vram, ram := n.ResidentVRAM, n.ResidentRAM
	if a.job != nil {
		vram, ram = vram+n.ExecuteVRAM, ram+n.ExecuteRAM
	}
	switch {
	case p == host:
		return ram
	case w.pools[p].shared:
		return vram + ram
	}
	return vram
}

// hinders says what keeps a from device p now, given the devices chosen with it.
func (w *pass) hinders(a *ask, p int, on []int) obstacle {
	if m := w.pools[p].measures; m != "" && (m != a.g.Instance || w.guests[a.group].busy > 0) {
		return obstacle{kind: beingMeasure, pool: p, by: m}
	}
	if a.measure {
		if by := w.occupant(a, p); by != "" {
			return obstacle{kind: beingUsed, pool: p, by: by}
		}
	}
	if n := w.missing(a, p, on); n > 0 {
		return obstacle{kind: lacksMemory, pool: p, bytes: n}
	}
	if a.measure && w.avail(a.group, p) <= 0 { // whatever it takes, there is nothing
		return obstacle{kind: lacksMemory, pool: p, bytes: 1}
	}
	if by := w.keptFrom(a, p); by != "" {
		return obstacle{kind: kept, pool: p, by: by}
	}
	return obstacle{}
}

// occupant names a worker other than a's that keeps device p from being
// measured on: one that works, or an idle one that could make way. Workers that
// never go (pinned, the monitor's) are part of the furniture.
func (w *pass) occupant(a *ask, p int) string {
	for i := range w.guests {
		gu, g := &w.guests[i], &w.view.Groups[i]
		if i != a.group && !gu.here && w.account(i, p).held > 0 { // kept for it
			return g.Instance
		}
		if i == a.group || !gu.here || !slices.Contains(gu.on, p) {
			continue
		}
		if gu.busy > 0 || gu.started || g.Loading || gu.gone != "" || g.Stopping != "" || !w.furniture(i) {
			return g.Instance
		}
	}
	return ""
}

// furniture reports whether a group's worker is never stopped for another.
func (w *pass) furniture(i int) bool {
	g := &w.view.Groups[i]
	return g.Pinned || g.Instance == w.view.MonitorInstance || (g.Instance == w.view.Monitor && g.Instance != "")
}

// ends predicts when the ask's run ends; zero: nobody knows.
func (w *pass) ends(a *ask) time.Time {
	if a.g.RunTimeP90 <= 0 || a.job == nil {
		return time.Time{}
	}
	run := a.g.RunTimeP90
	if a.late { // it starts when its victims are gone
		return time.Time{}
	}
	if !a.g.Resident || a.g.Loading {
		if a.g.LoadTime <= 0 {
			return time.Time{}
		}
		run += a.g.LoadTime
	}
	return w.view.Now.Add(run)
}
