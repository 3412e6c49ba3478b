package sched_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// witness holds each reason that the queue was told against the machine and the
// ledger, without asking the policy.
type witness struct {
	*keeper
	v sched.View
}

// lies says which reason is not true; "" when all are.
func (k *keeper) lies() string {
	if time.Until(k.next) <= 5*time.Millisecond { // workers have changed, and are not read yet
		return ""
	}
	w := witness{keeper: k, v: k.step.Moment()}
	told := k.step.Blocks()
	for i := range w.v.Groups {
		g := &w.v.Groups[i]
		b := told[g.Instance]
		switch {
		case len(g.Ready) == 0:
		case b == nil:
			return fmt.Sprintf("jobs of %s wait and nobody says why: %+v", g.Instance, g)
		default:
			if lie := w.examine(g, b); lie != "" {
				return fmt.Sprintf("%s is told %s: %q (needs %v, holders %v), but %s", g.Instance, b.Code, b.Sentence, b.Needs, b.Holders, lie)
			}
		}
	}
	return ""
}

// examine says what contradicts a reason.
func (w *witness) examine(g *sched.GroupView, b *jobs.Block) string {
	inst, _, _ := w.catalog.Instance(g.Instance)
	st, _ := w.workers.Status(g.Instance)
	ok := true
	switch b.Code {
	case "disabled":
		ok = !inst.Enabled
	case "stale_monitor":
		_, fresh := w.gate.Latest()
		ok = !fresh
	case "cooling_down":
		ok = b.Earliest.After(time.Now()) && (st.RetryAt.Equal(b.Earliest) || g.CoolUntil.Equal(b.Earliest))
	case "worker_failed":
		ok = st.State == supervisor.FailedState
	case "no_slot":
		ok = w.noSlot(g, b)
	case "quota":
		ok = len(w.v.Running) >= keptQuota // all are of one submitter
	case "resource":
		return w.resource(g, b)
	default:
		return "there is no such code here"
	}
	if !ok {
		return fmt.Sprintf("%+v, worker %+v", *g, st)
	}
	return ""
}

func (w *witness) noSlot(g *sched.GroupView, b *jobs.Block) bool {
	switch {
	case strings.Contains(b.Sentence, "run slots of this machine"):
		return w.v.Slots == 0
	case strings.Contains(b.Sentence, "is being stopped"), strings.Contains(b.Sentence, "makes way for"):
		return g.Stopping != ""
	}
	return g.SlotsFree == 0
}

// resource examines a lack of memory.
func (w *witness) resource(g *sched.GroupView, b *jobs.Block) string {
	switch {
	case strings.Contains(b.Sentence, "lease on") || strings.Contains(b.Sentence, "for a lease of"):
		if !slices.ContainsFunc(w.v.Devices, func(d sched.DeviceView) bool {
			return d.Free < 0 && d.Leased > 0 && strings.Contains(b.Sentence, "on "+string(d.ID))
		}) {
			return fmt.Sprintf("no lease is short there: %+v", w.v.Devices)
		}
		return ""
	case strings.Contains(b.Sentence, "is kept for"):
		s := w.step.Shadow()
		if s == nil || len(b.Holders) != 1 || s.Instance != b.Holders[0] || s.Instance == g.Instance {
			return fmt.Sprintf("reserved is %+v", s)
		}
		return ""
	case strings.Contains(b.Sentence, "waiting for the memory of"), strings.Contains(b.Sentence, "is asked to release"), strings.Contains(b.Sentence, "is stopped"):
		for _, name := range b.Holders {
			if !w.leaves(name) {
				return fmt.Sprintf("%s does not make way: %+v", name, w.v.Claims)
			}
		}
		return ""
	}
	for _, n := range b.Needs {
		if n.Available >= n.Needed {
			return "that is enough"
		}
		if says := fmt.Sprintf("%d MiB are free on %s", n.Available/resource.MiB, n.Device); strings.Contains(b.Sentence, "are free on "+string(n.Device)) && !strings.Contains(b.Sentence, says) {
			return "its needs say otherwise: " + says
		}
	}
	for i := range w.v.Devices {
		d := &w.v.Devices[i]
		if w.fits(g, d) {
			return fmt.Sprintf("it fits onto %+v beside %+v; %+v", *d, w.v.Claims, *g)
		}
	}
	return ""
}

// leaves reports whether an instance's worker is on its way out, or its memory on
// its way back.
func (w *witness) leaves(name string) bool {
	st, _ := w.workers.Status(name)
	stopping := slices.ContainsFunc(w.v.Groups, func(g sched.GroupView) bool { return g.Instance == name && g.Stopping != "" })
	returning := slices.ContainsFunc(w.v.Claims, func(c sched.Claim) bool { return c.Instance == name && c.Phase == sched.PhaseReleasing })
	unread := st.State == supervisor.Stopped && slices.ContainsFunc(w.v.Groups, func(g sched.GroupView) bool { return slices.Contains(g.WaitingFor, name) })
	return stopping || returning || unread
}

// fits reports whether the next job of g could start on the device by the ledger:
// what is free there, and what is kept for g itself, against what it takes on top
// of what its worker has.
func (w *witness) fits(g *sched.GroupView, d *sched.DeviceView) bool {
	needs := g.Need.ExecuteVRAM
	if !g.Resident {
		needs += g.Need.ResidentVRAM
	} else if !slices.Contains(g.Devices, d.ID) {
		return false
	}
	var claimed, measured, kept resource.Bytes
	for _, c := range w.v.Claims {
		switch {
		case c.Instance != g.Instance || c.Device != d.ID || c.Phase == sched.PhaseReleasing || c.Phase == sched.PhaseQuarantined:
		case c.Phase == sched.PhaseReserved && c.Owner == g.Instance:
			kept += c.Bytes
		default:
			claimed += c.Bytes
			measured = max(measured, c.Measured)
		}
	}
	grows := max(claimed+needs, measured) - max(claimed, measured)
	return grows <= d.Free+kept && d.Exclusive == ""
}

// Every reason that a job is told for waiting is true when it is told: by the
// catalogue, the workers, the monitor and the sums of the ledger, whatever the
// policy reckoned.
func TestReasons_EveryOneIsTrueWhenItIsTold(t *testing.T) {
	seen := make(map[string]int)
	rapid.Check(t, func(rt *rapid.T) {
		s, wrong := drawScript(rt), ""
		s.changes = slices.DeleteFunc(s.changes, func(c change) bool { return c.what == "policy" })
		onKeeper(t, func(k *keeper) {
			k.check = func() string {
				for _, b := range k.step.Blocks() {
					seen[b.Code]++
				}
				return k.lies()
			}
			wrong = k.play(s)
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
	for _, code := range []string{"disabled", "stale_monitor", "cooling_down", "worker_failed", "no_slot", "quota", "resource"} {
		if seen[code] == 0 {
			t.Errorf("no job was ever told %s", code)
		}
	}
}
