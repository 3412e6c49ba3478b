package policy

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// shadow is the reservation of the first job that cannot start. What is kept
// is not memory of now but of the time when the job is predicted to start.
type shadow struct {
	ask      ask
	since    time.Time
	draining bool
	forecast
}

// wait blocks the ask with the truth, and reserves for it if it is the first
// of its kind that cannot start.
func (w *pass) wait(a *ask) {
	f := w.foresee(a)
	w.block(a.g, w.reason(a, &f))
	for i := range w.shadows {
		if (w.shadows[i].ask.want > 0) == (a.want > 0) {
			return
		}
	}
	s := shadow{ask: *a, since: w.waitsSince(a.g), forecast: f}
	s.ask.on = f.on
	s.draining = (f.reachable || f.possible) && w.draining(a.g)
	if at := s.since.Add(w.o.hardWait(a.g)); at.After(w.view.Now) {
		w.wake(at)
	}
	w.shadows = append(w.shadows, s)
}

// draining reports whether g has waited so long that its devices drain.
func (w *pass) draining(g *sched.GroupView) bool { return w.waited(g) >= w.o.hardWait(g) }

// tellShadow puts the first reservation into the plan.
func (w *pass) tellShadow() {
	if len(w.shadows) == 0 {
		return
	}
	s := &w.shadows[0]
	out := &sched.Shadow{Instance: s.ask.g.Instance, Devices: w.ids(s.ask.on), VRAM: s.ask.vram(), RAM: s.ask.ram(),
		At: s.at, Since: s.since, Draining: s.draining}
	if s.ask.job != nil {
		out.Job = s.ask.job.ID
	}
	w.plan.Shadow = out
}

// keptFrom names the instance for which pool p is kept from a: a would end too
// late to be out of its way, and does not fit beside it. "" when it may go.
func (w *pass) keptFrom(a *ask, p int) string {
	for i := range w.shadows {
		s := &w.shadows[i]
		k := s.place(p)
		if k < 0 || s.ask.group == a.group || !s.binds(a, p) {
			continue
		}
		if w.hasTurn(s, a) || w.promised(a, p) {
			continue
		}
		inTime := w.inTime(s, a)
		switch {
		case s.draining && (p != host || s.hostShort) && !(inTime && !w.ends(a).After(s.notBefore)),
			!inTime && slices.Contains(s.relied, a.group):
			return s.ask.g.Instance
		}
		if n := w.outlasts(s, a, p, inTime); n > 0 && n > max(s.spare[k], 0) {
			return s.ask.g.Instance
		}
	}
	return ""
}

// place is p's place in spare, -1 when the shadow does not fall on p.
func (s *shadow) place(p int) int {
	if p == host {
		return len(s.on)
	}
	return slices.Index(s.on, p)
}

// binds reports whether the shadow keeps anything on pool p from a. A CPU-only
// job waits for no GPU job, unless that has waited too long for host memory.
func (s *shadow) binds(a *ask, p int) bool {
	if !s.reachable && !s.draining {
		return false
	}
	return a.want > 0 || s.ask.want == 0 || (p == host && s.draining && s.hostShort)
}

// hasTurn reports whether a runs on a loaded worker that may not be stopped for
// the shadow yet: nobody gains by its standing idle until then. While the device
// drains it has to be known to end in time.
func (w *pass) hasTurn(s *shadow, a *ask) bool {
	if !a.here || a.late || (s.draining && !w.inTime(s, a)) {
		return false
	}
	k := slices.Index(s.relied, a.group)
	return k >= 0 && w.view.Now.Before(s.turns[k])
}

// promised reports whether room was made for a on pool p: workers were stopped
// for it, which would have been in vain.
func (w *pass) promised(a *ask, p int) bool {
	acc := w.account(a.group, p)
	kept := acc.held - acc.lingers
	return kept > 0 && w.takes(a, p, a.on) <= kept
}

// inTime reports whether a is predicted to be over when the shadow needs room.
func (w *pass) inTime(s *shadow, a *ask) bool {
	ends := w.ends(a)
	return !ends.IsZero() && !s.at.IsZero() && !ends.After(s.at)
}

// outlasts is what of a's memory on pool p is still taken when the shadow
// needs it.
func (w *pass) outlasts(s *shadow, a *ask, p int, inTime bool) resource.Bytes {
	rest := *a
	if inTime {
		rest.execVRAM, rest.execRAM = 0, 0
		g := a.g
		gone := w.view.Now.Add(w.o.residency(g))
		if a.here || (!w.furniture(a.group) && g.Queued <= 1 && !g.LoadWanted && !gone.After(s.at)) {
			rest.resVRAM, rest.resRAM = 0, 0
		}
	}
	n := w.takes(&rest, p, s.onOf(a, p))
	if s.ask.measure && p != host && (!inTime || rest.resVRAM > 0) {
		n = max(n, 1) // it wants the device alone
	}
	if a.measure && p != host {
		n = w.pools[p].total // nobody knows, and it has it to itself
	}
	acc := w.account(a.group, p)
	n += min(acc.lingers, rest.vram())            // it takes that again, instead of giving it back
	return max(n-max(acc.held-acc.lingers, 0), 0) // what is held for it was given away before
}

// onOf is where a would sit as far as pool p is concerned.
func (s *shadow) onOf(a *ask, p int) []int {
	if len(a.on) > 0 || p == host {
		return a.on
	}
	return []int{p}
}

// constrain takes what a start takes off what the shadows have to spare. It
// runs before the start is booked.
func (w *pass) constrain(a *ask) {
	for i := range w.shadows {
		s := &w.shadows[i]
		if s.ask.group == a.group {
			continue
		}
		if w.hasTurn(s, a) {
			continue
		}
		inTime := w.inTime(s, a)
		for k, p := range s.on {
			if slices.Contains(a.on, p) {
				s.spare[k] -= w.outlasts(s, a, p, inTime)
			}
		}
		s.spare[len(s.on)] -= w.outlasts(s, a, host, inTime)
	}
}

// neverFits is the end of a job that no waiting would help.
func neverFits(a *ask, short []resource.Shortfall) *jobs.Error {
	return &jobs.Error{Category: jobs.ResourceCat, Shortfall: short, Message: impossible(a, short)}
}
