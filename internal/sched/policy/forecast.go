package policy

import (
	"cmp"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// forecast says when there will be room for an ask, and what that rests on.
type forecast struct {
	on []int
	// reachable is false when even the end of everything that may end brings too
	// little: then nothing is kept, and nothing drains, for it would be in vain.
	reachable bool
	// possible is true when it would fit if nobody but those who never go were
	// there: what the sums lack then is on its way, and draining helps.
	possible bool
	at       time.Time // zero: some of it has no predicted end
	overdue  bool      // at has passed: predictions were too short
	spare    []resource.Bytes
	relied   []int       // groups whose workers are to be gone by then
	turns    []time.Time // beside relied: when each may go
	// notBefore is when the last of them may go at the earliest: until then
	// nothing that ends in time is in the way, not even while the device drains.
	notBefore time.Time
	hostShort bool // host memory is part of what is missing
}

// event is memory that comes back to a pool and to the host.
type event struct {
	at       time.Time // zero: nobody knows
	since    time.Time
	group    int
	worker   bool
	from     time.Time // of a worker: it may not go before
	position int
}

// foresee predicts where and when there will be room for a.
func (w *pass) foresee(a *ask) forecast {
	if a.want == 0 || a.here {
		return w.foreseeOn(a, w.guests[a.group].on)
	}
	w.candidates(a)
	all := make([]forecast, 0, len(w.order))
	for i := range w.order {
		all = append(all, w.foreseeOn(a, []int{w.order[i].pool}))
	}
	if len(all) < a.want {
		return forecast{}
	}
	stood := w.stood(a)
	slices.SortStableFunc(all, func(x, y forecast) int {
		switch {
		case x.reachable != y.reachable:
			return first(x.reachable)
		case x.possible != y.possible:
			return first(x.possible)
		case x.at.IsZero() != y.at.IsZero():
			return first(y.at.IsZero())
		}
		return stood(x).Compare(stood(y))
	})
	if a.want == 1 {
		return all[0]
	}
	var on []int
	for i := range all[:a.want] {
		on = append(on, all[i].on...)
	}
	slices.Sort(on)
	return w.foreseeOn(a, on)
}

// stood returns the time by which forecasts of a are compared. The devices on
// which a's reservation is count as ready a little earlier, so that predictions
// that differ by little do not move it to and fro.
func (w *pass) stood(a *ask) func(forecast) time.Time {
	old := w.view.Shadow
	if old == nil || old.Instance != a.g.Instance {
		return func(f forecast) time.Time { return f.at }
	}
	on := w.places(old.Devices)
	return func(f forecast) time.Time {
		if overlaps(f.on, on) {
			return f.at.Add(-shadowSlack)
		}
		return f.at
	}
}

// shadowSlack is by how much another device must be ready earlier for a
// reservation to move there.
const shadowSlack = 15 * time.Second

// foreseeOn lets what runs end in the predicted order, and idle workers go when
// they may, until a fits on the given devices.
func (w *pass) foreseeOn(a *ask, on []int) forecast {
	f := forecast{on: on, spare: make([]resource.Bytes, len(on)+1), possible: w.possible(a, on)}
	for k, p := range on {
		f.spare[k] = w.avail(a.group, p) + w.back(a.group, p) - w.takes(a, p, on)
		if a.measure {
			f.spare[k] = min(f.spare[k], 0)
		}
	}
	h := len(on)
	f.spare[h] = w.avail(a.group, host) + w.back(a.group, host) - w.takes(a, host, on)
	f.hostShort = f.spare[h] < 0
	w.listEvents(a, &f)
	if !short(f.spare) && f.onItsWay(w, a) {
		f.at = w.view.Now.Add(comingTakes)
	}
	f.reachable = true
	for i := range w.events {
		if !a.measure && !short(f.spare) {
			return w.dated(f)
		}
		e := &w.events[i]
		for k, p := range on {
			f.spare[k] += w.returns(e, p)
		}
		f.spare[h] += w.returns(e, host)
		if e.worker {
			f.relied, f.turns = append(f.relied, e.group), append(f.turns, e.from)
			f.notBefore = later(f.notBefore, e.from)
		}
		f.at = e.at
	}
	f.reachable = !short(f.spare) && !(a.measure && w.stays(a, on))
	if a.measure { // whatever is over is its own, too
		for k := range on {
			f.spare[k] = min(f.spare[k], 0)
		}
	}
	return w.dated(f)
}

// comingTakes is what is reckoned with for memory that is on its way back: most
// is there after a second, and after five it counts as missing.
const comingTakes = 2 * time.Second

// onItsWay reports whether the forecast rests on memory that is on its way back.
func (f *forecast) onItsWay(w *pass, a *ask) bool {
	return slices.ContainsFunc(f.on, func(p int) bool { return w.back(a.group, p) > 0 }) || w.back(a.group, host) > 0
}

func (w *pass) dated(f forecast) forecast {
	f.overdue = !f.at.IsZero() && !f.at.After(w.view.Now)
	if !f.reachable {
		f.at = time.Time{}
	}
	return f
}

// possible reports whether a fits onto the devices when all are gone from them
// who ever go.
func (w *pass) possible(a *ask, on []int) bool {
	if w.missing(a, host, on) > 0 {
		return false
	}
	for _, p := range on {
		if w.whole(a, p) > w.forOurs(a, p) {
			return false
		}
	}
	return len(on) > 0
}

func short(spare []resource.Bytes) bool {
	return slices.ContainsFunc(spare, func(n resource.Bytes) bool { return n < 0 })
}

// stays reports whether somebody who does not go away keeps a from measuring.
func (w *pass) stays(a *ask, on []int) bool {
	for i := range w.guests {
		if i == a.group || !w.guests[i].here || !overlaps(w.guests[i].on, on) {
			continue
		}
		if _, ok := w.mayGo(a, i); !ok && !w.furniture(i) {
			return true
		}
	}
	return false
}

// returns is what an event brings back to pool p.
func (w *pass) returns(e *event, p int) resource.Bytes {
	if e.worker {
		n := w.yield(e.group, p)
		for q := range w.pools { // what ended runs left has come back before
			if q == p || (w.pools[p].shared && w.pools[q].shared) {
				n -= w.account(e.group, q).lingers
			}
		}
		for i := range w.works { // what its runs took came back when they ended
			if w.works[i].group == e.group {
				n -= w.ofRun(&w.works[i], p)
			}
		}
		return max(n, 0)
	}
	return w.ofRun(&w.works[e.position], p)
}

// ofRun is what the end of a run brings back to pool p.
func (w *pass) ofRun(r *work, p int) resource.Bytes {
	if !w.pools[p].shared {
		switch {
		case p == host:
			return r.ram
		case slices.Contains(r.on, p):
			return r.vram
		}
		return 0
	}
	n := r.ram
	for _, q := range r.on {
		if w.pools[q].shared {
			n += r.vram
		}
	}
	return n
}

// listEvents fills w.events with what may come back to the devices of f, or to
// the host where that is short, in the order it is predicted; what nobody can
// predict comes last, the longest running first.
func (w *pass) listEvents(a *ask, f *forecast) {
	w.events = w.events[:0]
	for i := range w.works {
		r := &w.works[i]
		if overlaps(r.on, f.on) || (f.hostShort && w.ofRun(r, host) > 0) {
			w.events = append(w.events, event{at: r.ends, since: r.since, group: r.group, position: i})
		}
	}
	for i := range w.guests {
		gu := &w.guests[i]
		if !gu.here || i == a.group || (!overlaps(gu.on, f.on) && !(f.hostShort && w.yield(i, host) > 0)) {
			continue
		}
		from, ok := w.mayGo(a, i)
		from = w.expected(a, &w.view.Groups[i], from)
		if w.view.Groups[i].Stopping != "" { // it goes when its runs are over
			from, ok = time.Time{}, gu.busy > 0
		}
		if !ok {
			continue
		}
		if p := w.spent(i); p >= 0 {
			if again := w.view.SwapsAgain[w.pools[p].id]; again.After(from) {
				from = again
			}
		}
		w.events = append(w.events, w.leaving(i, from))
	}
	slices.SortStableFunc(w.events, func(x, y event) int {
		switch {
		case x.at.IsZero() != y.at.IsZero():
			return first(y.at.IsZero())
		case !x.at.Equal(y.at):
			return x.at.Compare(y.at)
		case !x.since.Equal(y.since):
			return x.since.Compare(y.since)
		case x.worker != y.worker:
			return first(y.worker)
		}
		return cmp.Compare(x.group, y.group)
	})
}

// leaving is the event of a worker's stop: when its last run is over, and not
// before its time on the device is up.
func (w *pass) leaving(i int, from time.Time) event {
	g := &w.view.Groups[i]
	e := event{at: from, from: from, since: w.view.Now, group: i, worker: true}
	last := from // when the last run of its turn begins
	if g.Loading || (w.guests[i].started && w.guests[i].busy == 0) {
		e.at = later(e.at, w.view.Now.Add(g.LoadTime))
		last = later(from, e.at)
	}
	for k := range w.works {
		if w.works[k].group != i {
			continue
		}
		if w.works[k].ends.IsZero() {
			e.at = time.Time{}
			return e
		}
		e.at = later(e.at, w.works[k].ends)
	}
	if e.at.IsZero() {
		e.at = w.view.Now
	}
	if from.After(w.view.Now) && len(g.Ready) > 0 { // its turn: one more run may begin until then
		e.at = later(e.at, last.Add(g.RunTimeP90))
	}
	return e
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
