package amd_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/amd"
	"github.com/cjmd/cjmd/internal/monitors/cpu"
	"github.com/cjmd/cjmd/internal/resource"
)

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSample is one sample of two cards and the real host among 300
// processes of 40 open files each; Still is an idle box, Moving one whose
// memory changes so that all files are looked at. cpu-us/op × 1/3 s is the cost
// of an idle box: the budget of 0.2 % of a core is 6,000 us.
func BenchmarkSample(b *testing.B) {
	root := machine(b, "rx7900xtx")
	for pid := 10_000; pid < 10_300; pid++ {
		for fd := range 40 {
			put(b, root, fmt.Sprintf("proc/%d/fd/%d", pid, fd), "-> /dev/null")
		}
	}
	for name, step := range map[string]time.Duration{"Still": 0, "Moving": time.Hour} {
		b.Run(name, func(b *testing.B) {
			p := monitors.NewPace(time.Nanosecond, time.Nanosecond)
			now := time.Now()
			m := amd.New(amd.Options{Pace: p, Root: root, Host: cpu.New(cpu.Options{Pace: p}),
				Clock: func() time.Time { now = now.Add(step); return now }})
			ctx, cancel := context.WithCancel(b.Context())
			out, ended := make(chan resource.Snapshot), make(chan error, 1)
			go func() { ended <- m.Run(ctx, out) }()
			<-out // started
			began := cpuTime()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				<-out
			}
			b.StopTimer()
			b.ReportMetric(float64((cpuTime()-began).Microseconds())/float64(b.N), "cpu-us/op")
			cancel()
			<-ended
		})
	}
}
