package simtest

import (
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
)

// Bound is a time before which no schedule can end, and why.
type Bound struct {
	Makespan time.Duration `json:"makespan"`
	Why      string        `json:"why"`
}

// executeShare is how much of a run's time times its peak the model's programs
// really hold: half for the first quarter, then all.
const executeShare = 0.25*0.5 + 0.75

// LowerBound says how long the trace takes at least, whatever the order: the
// largest of what each job, each plugin's slots, the memory of all devices, and
// the devices' number allow. It supposes that loads cost nothing but once, that
// memory is back at once, and that nothing goes wrong.
func LowerBound(t *Trace) Bound {
	subs := t.Submissions()
	var b Bound
	consider := func(d time.Duration, why string) {
		if d > b.Makespan {
			b = Bound{Makespan: d, Why: why}
		}
	}
	first := make(map[string]time.Duration)
	for _, s := range subs {
		if _, seen := first[s.Plugin]; !seen {
			first[s.Plugin] = s.At
		}
		ready := max(s.At, first[s.Plugin]+t.loadAtLeast(s.Plugin))
		consider(ready+s.Run, "the job that comes last")
	}
	// Whatever comes at or after a time has to be done after it: by each plugin's
	// slots, in the memory there is, on the devices there are.
	work := make(map[string]time.Duration)
	var area, wide float64
	usable, largest := t.usable()
	for i := len(subs) - 1; i >= 0; i-- {
		s := subs[i]
		p := t.Plugins[s.Plugin]
		work[s.Plugin] += s.Run
		slots := work[s.Plugin] / time.Duration(p.Concurrency)
		from := s.At
		if s.At == first[s.Plugin] {
			from += t.loadAtLeast(s.Plugin)
		}
		consider(from+slots, "the slots of "+s.Plugin)
		if !p.gpu() || usable <= 0 {
			continue
		}
		sec := s.Run.Seconds() * float64(p.Devices)
		area += sec * (float64(resource.FromMB(p.ResidentMB))/float64(p.Concurrency) + executeShare*float64(resource.FromMB(p.ExecuteMB)))
		consider(s.At+seconds(area/float64(usable)), "the memory of the devices")
		if 2*resource.FromMB(p.ResidentMB+executeShare*p.ExecuteMB) > largest {
			wide += sec / float64(p.Concurrency)
			consider(s.At+seconds(wide/float64(len(t.Machine.Devices))), "the number of devices")
		}
	}
	return b
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (t *Trace) loadAtLeast(plugin string) time.Duration { return sim.Span(t.Plugins[plugin].Load).Min }

// usable is the memory of all devices together, and of the largest one.
func (t *Trace) usable() (sum, largest resource.Bytes) {
	for _, d := range t.Machine.Devices {
		n := resource.FromMB(d.TotalMB - d.UsedMB)
		sum += n
		largest = max(largest, n)
	}
	return sum, largest
}
