package nvidia_test

import (
	"context"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/cpu"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
	"github.com/cjmd/cjmd/internal/resource"
)

// eight is a box of eight GPUs with two processes on each.
func eight() *driver {
	d := &driver{}
	for i := range 8 {
		g := h100("GPU-" + string(rune('a'+i)))
		g.compute = []nvml.ProcessInfo{{Pid: 1, UsedGpuMemory: gib}, {Pid: 2, UsedGpuMemory: gib}}
		d.gpus = append(d.gpus, g)
	}
	return d
}

// cpuTime is what this process, or its ended children, have used of the CPUs.
func cpuTime(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSample is one sample of eight simulated GPUs and the real host, in
// this process. cpu-us/op × 1/3 s is the cost of an idle box: the budget of
// 0.2 % of a core is 6,000 us.
func BenchmarkSample(b *testing.B) {
	p := monitors.NewPace(time.Nanosecond, time.Nanosecond)
	benchmark(b, nvidia.New(nvidia.Options{Pace: p, Host: cpu.New(cpu.Options{Pace: p}), Library: eight().library}))
}

// BenchmarkSampleThroughHelper is the same as the daemon has it; the helper's
// own part, two GPUs, is not in cpu-us/op.
func BenchmarkSampleThroughHelper(b *testing.B) {
	p := monitors.NewPace(time.Nanosecond, time.Nanosecond)
	benchmark(b, nvidia.New(nvidia.Options{Pace: p, Host: cpu.New(cpu.Options{Pace: p}),
		Helper: []string{"/proc/self/exe", "test-helper", "gpus"}}))
}

func benchmark(b *testing.B, m *nvidia.Monitor) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	out, ended := make(chan resource.Snapshot), make(chan error, 1)
	go func() { ended <- m.Run(ctx, out) }()
	<-out // started
	runtime.GC()
	began := cpuTime(syscall.RUSAGE_SELF)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		<-out
	}
	b.StopTimer()
	b.ReportMetric(float64((cpuTime(syscall.RUSAGE_SELF)-began).Microseconds())/float64(b.N), "cpu-us/op")
	cancel()
	<-ended
}
