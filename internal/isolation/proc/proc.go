// Package proc reads /proc: one pass over all processes gives a Table, from
// which descendants, memory and CPU time are taken. Nothing here runs a program
// and nothing is cached; every function is safe from any goroutine.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stat is what /proc/PID/stat says about one process.
type Stat struct {
	PID   int
	PPID  int
	State byte // 'R', 'S', 'Z', …
	Start uint64
	CPU   time.Duration // user and system, without waited-for children
	RSS   int64         // bytes
	Nice  int
	Comm  string
}

// Dead reports whether the process has ended and only waits to be reaped.
func (s Stat) Dead() bool { return s.State == 'Z' || s.State == 'X' }

// ID names a process for ever on one boot: pids are reused, the pair is not.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// ID returns the identity of s.
func (s Stat) ID() ID { return ID{PID: s.PID, Start: s.Start} }

// tick is USER_HZ, which Linux fixes at 100 on every architecture it supports.
const tick = time.Second / 100

// Read returns the Stat of pid; os.ErrNotExist when there is no such process.
func Read(pid int) (Stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, syscall.ESRCH) {
		err = os.ErrNotExist
	}
	if err != nil {
		return Stat{}, err
	}
	return parseStat(b)
}

// parseStat reads a line of proc_pid_stat(5). The command may hold spaces and
// parentheses, so fields are counted from the last ")".
func parseStat(b []byte) (Stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return Stat{}, fmt.Errorf("cannot parse process stat %q", b)
	}
	f := strings.Fields(string(b[end+1:]))
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	if err != nil || len(f) < 22 {
		return Stat{}, fmt.Errorf("cannot parse process stat %q", b)
	}
	num := func(i int) int64 { // field numbers of the manual page, from 3 on
		n, _ := strconv.ParseInt(f[i-3], 10, 64)
		return n
	}
	return Stat{
		PID: pid, Comm: string(b[open+1 : end]), State: f[0][0], PPID: int(num(4)),
		CPU: time.Duration(num(14)+num(15)) * tick, Nice: int(num(19)), Start: uint64(num(22)),
		RSS: num(24) * int64(os.Getpagesize()),
	}, nil
}

// Table is one pass over /proc, by pid.
type Table map[int]Stat

// All reads every process that can be seen. Processes that end meanwhile are left out.
func All() (Table, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	t := make(Table, len(names))
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := Read(pid); err == nil {
			t[pid] = s
		}
	}
	return t, nil
}

// Below returns the processes that have root among their ancestors, without root.
func (t Table) Below(root int) []Stat {
	var out []Stat
	for pid, s := range t {
		if pid != root && t.under(s, root) {
			out = append(out, s)
		}
	}
	return out
}

func (t Table) under(s Stat, root int) bool {
	for range len(t) { // a bound: a table is no snapshot and could hold a loop
		if s.PPID == root {
			return true
		}
		parent, ok := t[s.PPID]
		if !ok {
			return false
		}
		s = parent
	}
	return false
}

// HasEnvPrefix reports whether the environment pid was started with has an
// entry that begins with prefix ("KEY=val"). False also when it cannot be read.
func HasEnvPrefix(pid int, prefix string) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	for e := range bytes.SplitSeq(b, []byte{0}) {
		if bytes.HasPrefix(e, []byte(prefix)) {
			return true
		}
	}
	return false
}

// Cgroup returns the path of pid in the unified hierarchy, "" when unknown.
// A zombie still has one.
func Cgroup(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(strings.TrimSuffix(path, "\n"), " (deleted)")
		}
	}
	return ""
}

// Signal sends sig to exactly the process id names; one that is gone (or whose
// pid now belongs to another) is no error.
func Signal(id ID, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open process %d: %w", id.PID, err)
	}
	defer unix.Close(fd)
	// The pidfd now pins the pid; the start time says whether it is ours.
	if s, err := Read(id.PID); err != nil || s.Start != id.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot signal process %d: %w", id.PID, err)
	}
	return nil
}

// BootID identifies this boot of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
