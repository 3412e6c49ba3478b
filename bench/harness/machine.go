package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what the numbers were measured on.
type Machine struct {
	At         time.Time `json:"at"`
	Cores      int       `json:"cores"`
	CPU        string    `json:"cpu"`
	MemoryMB   int64     `json:"memory_mb"`
	Kernel     string    `json:"kernel"`
	FileSystem string    `json:"file_system"` // of the private directory
	FsyncP50MS float64   `json:"fsync_p50_ms"`
	FsyncP99MS float64   `json:"fsync_p99_ms"`
	Load1      float64   `json:"load_1m"` // before the run
	Go         string    `json:"go"`
	Python     string    `json:"python"`
	Quick      bool      `json:"quick"`
}

// Machine looks at the machine and measures its fsync where the store will be.
func (b *Bench) Machine(ctx context.Context) (Machine, error) {
	m := Machine{At: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), CPU: cpuName(), Go: runtime.Version(), Quick: b.Quick}
	out, err := exec.CommandContext(ctx, b.Python, "-c", "import platform; print(platform.python_implementation(), platform.python_version())").Output()
	if err != nil {
		return m, fmt.Errorf("cannot ask Python for its version: %w", err)
	}
	m.Python = strings.TrimSpace(string(out))
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("cannot read the size of memory: %w", err)
	}
	m.MemoryMB = int64(info.Totalram) * int64(info.Unit) >> 20
	m.Load1 = round(float64(info.Loads[0]) / 65536)
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("cannot read the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	m.FileSystem = fileSystem(b.dir)
	laps, err := fsyncs(b.dir, b.Times(200, 1000))
	if err != nil {
		return m, err
	}
	m.FsyncP50MS, m.FsyncP99MS = round(Milliseconds(Quantile(laps, 0.5))), round(Milliseconds(Quantile(laps, 0.99)))
	return m, nil
}

func cpuName() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range bytes.Lines(text) {
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && strings.TrimSpace(string(key)) == "model name" {
			return strings.TrimSpace(string(value))
		}
	}
	return runtime.GOARCH
}

func fileSystem(dir string) string {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return "unknown"
	}
	switch s.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	default:
		return fmt.Sprintf("%#x", s.Type)
	}
}

// fsyncs measures appending a page and waiting until it is on disk.
func fsyncs(dir string, times int) ([]time.Duration, error) {
	f, err := os.OpenFile(filepath.Join(dir, "fsync"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot measure fsync: %w", err)
	}
	defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
	page := make([]byte, 4096)
	laps := make([]time.Duration, 0, times)
	for range times {
		begin := time.Now()
		if _, err := f.Write(page); err != nil {
			return nil, fmt.Errorf("cannot measure fsync: %w", err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, fmt.Errorf("cannot measure fsync: %w", err)
		}
		laps = append(laps, time.Since(begin))
	}
	return laps, nil
}
