package cpu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/cpu"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/resource"
	pscpu "github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/mem"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gib = 1024 * resource.MiB

func fastPace() *monitors.Pace {
	p := monitors.NewPace(time.Millisecond, time.Millisecond)
	return p
}

func TestCPU_Conforms(t *testing.T) {
	monitortest.Run(t, func(*testing.T) monitors.Monitor { return cpu.New(cpu.Options{Pace: fastPace()}) })
}

// first runs a monitor on a made-up machine of 16 GiB, 12 of them available,
// with the given files, and returns its first snapshot.
func first(t *testing.T, files map[string]string, change ...func(*cpu.Options)) (resource.Snapshot, error) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := cpu.Options{Root: root, Pace: fastPace(),
		Memory: func(context.Context) (*mem.VirtualMemoryStat, error) {
			return &mem.VirtualMemoryStat{Total: uint64(16 * gib), Available: uint64(12 * gib)}, nil
		},
		Swap: func(context.Context) (*mem.SwapMemoryStat, error) {
			return &mem.SwapMemoryStat{Total: uint64(2 * gib), Used: uint64(1 * gib)}, nil
		},
	}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, ended := make(chan resource.Snapshot), make(chan error, 1)
	go func() { ended <- cpu.New(o).Run(ctx, out) }()
	select {
	case s := <-out:
		cancel()
		<-ended
		return s, nil
	case err := <-ended:
		return resource.Snapshot{}, err
	}
}

func v2(path string, files map[string]string) map[string]string {
	all := map[string]string{
		"proc/self/cgroup":    "0::" + path + "\n",
		"proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
	}
	for name, text := range files {
		all["sys/fs/cgroup/"+name] = text
	}
	return all
}

func TestCPU_MemoryIsTheSmallerOfHostAndCgroups(t *testing.T) {
	mb := func(n int) string { return fmt.Sprint(n << 20) }
	v1 := map[string]string{
		"proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
		"proc/self/mountinfo": "35 30 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n" +
			"36 30 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
		"sys/fs/cgroup/memory/memory.limit_in_bytes":      mb(4096),
		"sys/fs/cgroup/memory/memory.usage_in_bytes":      mb(3072),
		"sys/fs/cgroup/memory/memory.stat":                "inactive_file 1\ntotal_inactive_file " + mb(1024) + "\n",
		"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":      "100000\n",
		"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us":     "100000\n",
		"sys/fs/cgroup/memory/memory.kmem.usage_in_bytes": "7",
	}
	unlimited := map[string]string{}
	for k, v := range v1 {
		unlimited[k] = v
	}
	unlimited["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
	for _, c := range []struct {
		name             string
		files            map[string]string
		total, available resource.Bytes
		from             string
	}{
		{"no cgroups", nil, 16 * gib, 12 * gib, "host"},
		{"v2 without limit", v2("/a.service", map[string]string{"a.service/memory.max": "max\n", "a.service/memory.current": mb(1)}), 16 * gib, 12 * gib, "host"},
		{"v2 own limit, cache not counted", v2("/a.service", map[string]string{
			"a.service/memory.max": mb(8192) + "\n", "a.service/memory.current": mb(6144) + "\n",
			"a.service/memory.stat": "anon 1\ninactive_file " + mb(2048) + "\n",
		}), 8 * gib, 4 * gib, "cgroup /a.service"},
		{"v2 parent's limit is the smaller", v2("/s.slice/a.service", map[string]string{
			"s.slice/a.service/memory.max": mb(8192), "s.slice/a.service/memory.current": mb(1024),
			"s.slice/memory.max": mb(6144), "s.slice/memory.current": mb(5120),
		}), 6 * gib, 1 * gib, "cgroup /s.slice"},
		{"v2 limit above what the host has left", v2("/a", map[string]string{"a/memory.max": mb(15360), "a/memory.current": mb(1024)}), 15 * gib, 12 * gib, "host"},
		{"v2 more used than allowed", v2("/a", map[string]string{"a/memory.max": mb(1024), "a/memory.current": mb(2048)}), 1 * gib, 0, "cgroup /a"},
		{"v2 in a container that sees only its part", v2("/../../other", map[string]string{"memory.max": mb(2048), "memory.current": mb(1024)}), 2 * gib, 1 * gib, "cgroup /"},
		{"v1 limit", v1, 4 * gib, 2 * gib, "cgroup /"},
		{"v1 without limit", unlimited, 16 * gib, 12 * gib, "host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := first(t, c.files)
			if err != nil {
				t.Fatal(err)
			}
			if s.Host.MemTotal != c.total || s.Host.MemAvailable != c.available || s.Host.MemUsed != c.total-c.available {
				t.Errorf("total %v, available %v, used %v MiB; want %v and %v",
					s.Host.MemTotal.MB(), s.Host.MemAvailable.MB(), s.Host.MemUsed.MB(), c.total.MB(), c.available.MB())
			}
			if s.Details["memory_from"] != c.from {
				t.Errorf("memory from %v, want %s", s.Details["memory_from"], c.from)
			}
			if s.GPUVendor != "None" || s.Host.SwapTotal != 2*gib || s.Host.SwapUsed != gib {
				t.Errorf("snapshot %+v", s)
			}
		})
	}
}

func TestCPU_QuotaLimitsTheCPUs(t *testing.T) {
	s, err := first(t, v2("/a", map[string]string{"a/cpu.max": "50000 100000\n"}))
	if err != nil || s.Host.CPUs != 1 {
		t.Errorf("%d CPUs with a quota of half a CPU (%v)", s.Host.CPUs, err)
	}
}

func TestCPU_TheFirstReadingIsAMeasuredLoad(t *testing.T) {
	n := 0.0
	s, err := first(t, nil, func(o *cpu.Options) {
		o.Times = func(context.Context, bool) ([]pscpu.TimesStat, error) {
			n++
			return []pscpu.TimesStat{{User: 3 * n, System: n, Iowait: 1 * n, Idle: 5 * n}}, nil
		}
	})
	if err != nil || s.Host.CPUPercent != 40 {
		t.Errorf("load %v %%, want 40 (%v)", s.Host.CPUPercent, err)
	}
}

func TestCPU_FailuresAreToldNotGuessed(t *testing.T) {
	_, err := first(t, nil, func(o *cpu.Options) {
		o.Memory = func(context.Context) (*mem.VirtualMemoryStat, error) { return nil, errors.New("no /proc") }
	})
	if err == nil || !strings.Contains(err.Error(), "cannot read host memory") {
		t.Errorf("error %v", err)
	}
	_, err = first(t, nil, func(o *cpu.Options) {
		o.Times = func(context.Context, bool) ([]pscpu.TimesStat, error) { return nil, nil }
	})
	if !errors.Is(err, monitors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestCPU_IsKnownByBothNames(t *testing.T) {
	c := cpu.Constructor()
	m, err := c.New(fastPace())
	if err != nil || m.Name() != "cpu" || c.Aliases[0] != "sys-mon-cpu" {
		t.Errorf("constructor %+v makes %v, %v", c, m, err)
	}
}
