package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
)

// crowd is 10,000 pending jobs of 40 plugins, 32 workers and 8 devices that are
// full. busy of the workers run a job, the others idle.
func crowd(busy int) *box {
	b := newBox(24, 24, 24, 24, 24, 24, 24, 24)
	b.v.Share = map[string]float64{"ann": 100, "bob": 50}
	for i := range 40 {
		name := fmt.Sprint("plugin", i)
		b.put(name, 2, need(5, 4), hostNeed(1, 0), times(20*time.Second, time.Minute, 2*time.Minute), waiting(time.Duration(i)*time.Second))
		g := b.group(name)
		g.Queued = 250
		for j := range g.Ready {
			g.Ready[j].Submitter = []string{"ann", "bob"}[j%2]
			g.Ready[j].CreatedAt = now.Add(-time.Duration(i) * time.Second)
		}
	}
	for i := range 32 {
		name := fmt.Sprint("plugin", i)
		b.loaded(name, i/4)
		if i < busy {
			b.running(name, time.Duration(i)*time.Second)
		}
	}
	return b
}

func BenchmarkReserve_Decide(b *testing.B) {
	for _, c := range []struct {
		name string
		box  *box
	}{
		{"busy", crowd(32)},
		{"idle workers, all wanted", crowd(0)},
		{"idle workers to choose from", choice()},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := policy.Reserve(policy.ReserveOptions{})
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(c.box.v)
			}
		})
	}
}

// choice has 32 idle workers that nobody waits for, and 8 jobs that need many
// of them gone.
func choice() *box {
	b := crowd(0)
	for i := range b.v.Groups {
		g := &b.v.Groups[i]
		if i < 32 {
			g.Ready, g.Queued, g.Uses = nil, 0, float64(i%7)
			continue
		}
		g.Need = sched.Need{GPU: true, Devices: 1, ResidentVRAM: 14 * gib, Known: true}
		g.Ready = []jobs.Ready{g.Ready[0]}
	}
	return b
}
