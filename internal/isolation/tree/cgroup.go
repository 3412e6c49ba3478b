package tree

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// leaf is a sandbox that is one cgroup. cgroup.kill ends it, forks in flight included.
type leaf struct {
	h    *Host
	dir  string
	fd   *os.File // the directory, for CLONE_INTO_CGROUP
	name string
	c    Confine
	leader

	once sync.Once
	err  error // of Close
}

// cgroupParent finds the directory in the unified hierarchy that stands for
// this process' own cgroup, wherever the hierarchy is mounted.
func cgroupParent() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("cannot read the mount table: %w", err)
	}
	defer f.Close()
	own := ownCgroup()
	if own == "" {
		return "", errors.New("no cgroup v2 hierarchy")
	}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields, types, ok := strings.Cut(sc.Text(), " - ")
		col := strings.Fields(fields)
		if !ok || len(col) < 5 || !strings.HasPrefix(types, "cgroup2 ") {
			continue
		}
		// A mount may show only a part of the hierarchy, from root on.
		root, point := col[3], col[4]
		if rel, ok := strings.CutPrefix(own, strings.TrimSuffix(root, "/")); ok {
			return filepath.Join(point, rel), nil
		}
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted that shows our own cgroup")
}

// probeCgroupLocked makes the base directory and tries the whole life of a leaf.
func (h *Host) probeCgroupLocked(ctx context.Context) (err error) {
	parent := h.o.CgroupParent
	if parent == "" {
		if parent, err = cgroupParent(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
		return fmt.Errorf("not a cgroup v2 directory: %w", err)
	}
	base := filepath.Join(parent, h.baseName())
	if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	defer func() {
		if err != nil { // of no use: the next strategy is tried
			err = errors.Join(err, removeTree(base))
		}
	}()
	l, err := h.newLeaf(base, "probe", Confine{})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := h.Try(ctx, l); err != nil {
		return err
	}
	h.base = base
	h.enableControllers(parent, base)
	return nil
}

// Try starts a real process in a sandbox, kills the sandbox and checks both.
func (h *Host) Try(ctx context.Context, s isolation.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stdin, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hold.Close()
	defer stdin.Close()
	cmd := h.helper(VerbShim, "--probe")
	cmd.Stdin = stdin
	if err := s.Start(cmd); err != nil {
		return err
	}
	empty := s.Empty()
	err = s.Kill(ctx)
	status, werr := s.Wait()
	switch {
	case err != nil || werr != nil:
		return errors.Join(err, werr)
	case empty:
		return fmt.Errorf("the process did not start inside (or ended at once with code %d)", status.Code)
	case status.Signal != syscall.SIGKILL || !s.Empty():
		return errors.New("a kill did not end the process inside")
	}
	return nil
}

func (h *Host) newLeaf(base, name string, c Confine) (*leaf, error) {
	dir := filepath.Join(base, dirName(name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the cgroup of %q: %w", name, err)
	}
	fd, err := os.Open(dir)
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "cgroup.kill"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use the cgroup of %q: %w", name, err), os.Remove(dir))
	}
	return &leaf{h: h, dir: dir, fd: fd, name: name, c: c}, nil
}

// Dir implements Group.
func (l *leaf) Dir() string { return l.dir }

func (l *leaf) Start(cmd *exec.Cmd) error {
	cmd.Env = cleanEnv(cmd.Env, l.h.marker(l.name))
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(l.fd.Fd())
	if l.c.DeathSig {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := l.h.spawnerFor(l.c).start(cmd); err != nil {
		return err
	}
	l.leader.set(cmd)
	return nil
}

func (l *leaf) Usage() (isolation.Usage, error) { return l.usage(0) }

// usage leaves out a process of ours that is in there, too.
func (l *leaf) usage(shim int) (isolation.Usage, error) {
	u := isolation.Usage{SampledAt: time.Now()}
	for _, pid := range l.pidsBut(shim) {
		if s, err := proc.Read(pid); err == nil {
			u.Processes++
			u.PIDs = append(u.PIDs, pid)
			u.RSS += s.RSS
		}
	}
	u.CPUTime = time.Duration(cgroupStat(l.dir, "cpu.stat", "usage_usec")) * time.Microsecond
	u.OOMKills = cgroupStat(l.dir, "memory.events", "oom_kill")
	if b, err := os.ReadFile(filepath.Join(l.dir, "memory.peak")); err == nil {
		u.MemoryPeak, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
	return u, nil
}

// PIDs is one read of cgroup.procs.
func (l *leaf) PIDs() []int { return l.pidsBut(0) }

func (l *leaf) pidsBut(shim int) []int {
	pids := slices.DeleteFunc(cgroupPIDs(l.dir), func(pid int) bool { return pid == shim })
	slices.Sort(pids)
	return slices.Compact(pids)
}

func (l *leaf) Kill(ctx context.Context) error {
	if err := killCgroup(ctx, l.dir); err != nil {
		return err
	}
	l.reapAdopted()
	return nil
}

// reapAdopted collects orphans of the tree that became our children, which
// happens only when the daemon is the init of its PID namespace (a container).
// Only processes of this cgroup: another part of the daemon may be waiting for
// a child of its own.
func (l *leaf) reapAdopted() {
	if os.Getpid() != 1 {
		return
	}
	t, err := proc.All()
	if err != nil {
		l.h.o.Log.Warn("cannot look for adopted processes", zap.Error(err))
		return
	}
	for pid, s := range t {
		if s.PPID == 1 && s.Dead() && pid != l.PID() && strings.HasSuffix(l.dir, proc.Cgroup(pid)) {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
	}
}

func (l *leaf) Empty() bool { return cgroupStat(l.dir, "cgroup.events", "populated") != 1 }

func (l *leaf) Report() []isolation.Fact {
	facts := []isolation.Fact{
		{Mechanism: "tree_kill", Requested: true, InForce: true, VerifiedBy: "host probe", Detail: "cgroup.kill of " + l.dir},
		{Mechanism: "daemon_death", Requested: true, InForce: true, VerifiedBy: "guardian started", Detail: "guardian fires cgroup.kill"},
	}
	return append(facts, l.leader.session())
}

func (l *leaf) Close() error {
	l.once.Do(func() {
		l.leader.release()
		l.err = errors.Join(l.fd.Close(), removeTree(l.dir))
	})
	return l.err
}

// killCgroup ends every process in dir and below and waits until none is left.
func killCgroup(ctx context.Context, dir string) error {
	pause := 200 * time.Microsecond
	for {
		err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil // somebody has removed it, which needs it to be empty
		}
		if err != nil {
			return fmt.Errorf("cannot kill cgroup %s: %w", dir, err)
		}
		if cgroupStat(dir, "cgroup.events", "populated") != 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot end processes %v of cgroup %s: %w", cgroupPIDs(dir), dir, ctx.Err())
		case <-time.After(pause):
			pause = min(2*pause, 20*time.Millisecond)
		}
	}
}

// cgroupPIDs lists the processes of dir and of the cgroups that a worker with
// enough rights made below it.
func cgroupPIDs(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // what vanishes meanwhile holds no process
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		for line := range bytes.Lines(b) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// cgroupStat reads one "key value" line of a file; 0 when it is not there.
func cgroupStat(dir, file, key string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+" "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

// removeTree removes an empty cgroup and the empty ones below it. The kernel
// may say "busy" for a moment after the last process ended.
func removeTree(dir string) error {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		var err error
		for pause := time.Millisecond; pause < 300*time.Millisecond; pause *= 2 {
			if err = os.Remove(dirs[i]); err == nil || errors.Is(err, fs.ErrNotExist) {
				err = nil
				break
			}
			time.Sleep(pause)
		}
		if err != nil {
			return fmt.Errorf("cannot remove cgroup: %w", err)
		}
	}
	return nil
}

// dirName makes a name of letters, digits and -_. only; others become %XX.
func dirName(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
