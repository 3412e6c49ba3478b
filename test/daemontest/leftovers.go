package daemontest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaveTime is what the workers of a daemon that died have to end in.
const leaveTime = 5 * time.Second

// AssertNothingLeft fails the test when a process of the daemon outlives it: one
// that runs its program, carries its marker or works in its directory. Those
// that are about to end (the daemon was killed) have leaveTime for it.
func (d *Daemon) AssertNothingLeft(t testing.TB) {
	t.Helper()
	left := d.processes()
	deadline := time.Now().Add(leaveTime)
	for len(left) > 0 {
		p := left[0]
		if err := awaitEnd(p.pid, time.Until(deadline)); err != nil {
			for _, p := range left {
				t.Errorf("a process is left: %s", p)
				_ = unix.Kill(p.pid, unix.SIGKILL) // found by the marks of this test's own daemon
			}
			return
		}
		left = d.processes()
	}
	if d.cmd != nil && !d.Running() {
		killed := d.cmd.ProcessState.ExitCode() < 0
		assertNoCgroup(t, d.process, !killed)
		if killed {
			d.killed = append(d.killed, d.process)
		}
	}
}

// process is one that belongs to a daemon.
type process struct {
	pid int
	why string
	cmd string
}

func (p process) String() string { return fmt.Sprintf("pid %d (%s): %s", p.pid, p.why, p.cmd) }

// processes finds what belongs to the daemon, except the daemon while it runs.
func (d *Daemon) processes() []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if d.Running() && pid == d.PID() {
			continue
		}
		why := d.belongs(dir)
		if why == "" {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		out = append(out, process{pid: pid, why: why, cmd: strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))})
	}
	return out
}

// belongs says by what a process is the daemon's; "" when it is not. A zombie
// has none of the marks: it is nobody's burden any more.
func (d *Daemon) belongs(dir string) string {
	if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil && strings.TrimSuffix(exe, " (deleted)") == d.exe {
		return "program"
	}
	if cwd, err := os.Readlink(filepath.Join(dir, "cwd")); err == nil && strings.HasPrefix(cwd, d.State+"/") {
		return "directory"
	}
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return ""
	}
	for _, kv := range bytes.Split(env, []byte{0}) {
		if string(kv) == d.marker {
			return "environment"
		}
	}
	return ""
}

// awaitEnd waits until the process has ended.
func awaitEnd(pid int, within time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot watch process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	deadline := time.Now().Add(within)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d did not end within %s", pid, within)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot watch process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}

// AwaitEnd fails the test when the process does not end in time.
func AwaitEnd(t testing.TB, pid int, within time.Duration) {
	t.Helper()
	if err := awaitEnd(pid, within); err != nil {
		t.Error(err)
	}
}

// Alive reports whether the process exists and is no zombie.
func Alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(stat, ')')
	return i > 0 && i+2 < len(stat) && stat[i+2] != 'Z'
}

// identity is the process as its control groups are named: pid and start time.
func identity(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return fmt.Sprintf("%d-gone", pid) // ended at once: it made none
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	return fmt.Sprintf("%d-%s", pid, fields[19])
}

// assertNoCgroup fails the test when a control group of a process that has ended
// is left. One that is empty may outlive a SIGKILL, when it came between its
// making and the guardian's start: the next daemon on this state removes it.
func assertNoCgroup(t testing.TB, process string, emptyToo bool) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		left, _ := filepath.Glob(filepath.Join(root, "cjmd-*."+process))
		for _, dir := range left {
			if emptyToo || !awaitEmpty(filepath.Join(dir, "cgroup.events"), time.Now().Add(leaveTime)) {
				t.Errorf("a control group is left: %s", dir)
			}
		}
	}
}

// awaitEmpty waits until a control group holds no process. One that has just
// died is counted until its parent has reaped it; the kernel tells the change.
func awaitEmpty(events string, deadline time.Time) bool {
	f, err := os.Open(events)
	if err != nil {
		return true // removed meanwhile
	}
	defer f.Close()
	for {
		b := make([]byte, 256)
		n, err := f.ReadAt(b, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return true // likewise
		}
		if !bytes.Contains(b[:n], []byte("populated 1")) {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, int(left.Milliseconds())+1)
	}
}
