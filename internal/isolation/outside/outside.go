// Package outside holds what several tiers set of a worker from outside, right
// after its exec: resource limits (never on address space or on the number of
// processes, which break GPU runtimes), niceness, a first place in the queue of
// the kernel's OOM killer. A worker runs no code of its plugin before the daemon
// says hello, which comes later. Everything is read back.
package outside

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// oomScoreAdj makes the kernel choose a worker before the daemon when memory
// runs out. Raising it needs no privilege.
const oomScoreAdj = 500

// Confine sets the limits of process pid and returns what holds. What could not
// be set is among the facts, with the reason.
func Confine(pid int, spec isolation.Spec) []isolation.Fact {
	facts := []isolation.Fact{limit(pid, "core", "Max core file size", unix.RLIMIT_CORE, 0)}
	if spec.NoFile > 0 {
		facts = append(facts, limit(pid, "nofile", "Max open files", unix.RLIMIT_NOFILE, spec.NoFile))
	}
	if spec.Nice != 0 {
		facts = append(facts, nice(pid, spec.Nice))
	}
	facts = append(facts, oomScore(pid), noNewPrivs(pid))
	if os.Geteuid() != 0 || sameUID(pid) {
		facts = append(facts, isolation.Fact{Mechanism: "own_uid", Detail: "limits are advisory: the worker has the daemon's user"})
	}
	return facts
}

// limit sets one rlimit, where a shim has not done so, and reads it back from
// /proc: prlimit also reads only those of its own user.
func limit(pid int, name, row string, resource, value int) isolation.Fact {
	holds, err := hasLimit(pid, row, value)
	if err == nil && !holds {
		want := unix.Rlimit{Cur: uint64(value), Max: uint64(value)}
		if err = unix.Prlimit(pid, resource, &want, nil); err == nil {
			holds, err = hasLimit(pid, row, value)
		}
	}
	return fact("rlimit_"+name, "/proc/PID/limits", holds, strconv.Itoa(value), err)
}

// hasLimit reports whether soft and hard limit of a row of /proc/PID/limits are value.
func hasLimit(pid int, row string, value int) (bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, row); ok {
			f, want := strings.Fields(rest), strconv.Itoa(value)
			return len(f) >= 2 && f[0] == want && f[1] == want, nil
		}
	}
	return false, fmt.Errorf("no %q in /proc/PID/limits", row)
}

func nice(pid, value int) isolation.Fact {
	err := unix.Setpriority(unix.PRIO_PROCESS, pid, value)
	st, rerr := proc.Read(pid)
	return fact("nice", "/proc/PID/stat", rerr == nil && st.Nice == value, strconv.Itoa(value), errors.Join(err, rerr))
}

func oomScore(pid int) isolation.Fact {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	want := strconv.Itoa(oomScoreAdj)
	err := os.WriteFile(path, []byte(want), 0)
	got, rerr := os.ReadFile(path)
	return fact("oom_score_adj", "/proc/PID/oom_score_adj", rerr == nil && string(bytes.TrimSpace(got)) == want, want, errors.Join(err, rerr))
}

func noNewPrivs(pid int) isolation.Fact {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return fact("no_new_privs", "/proc/PID/status", strings.Contains(string(b), "\nNoNewPrivs:\t1\n"), "", err)
}

func fact(mechanism, by string, holds bool, value string, err error) isolation.Fact {
	f := isolation.Fact{Mechanism: mechanism, Requested: true, VerifiedBy: by, InForce: holds && err == nil, Detail: value}
	if err != nil {
		f.Detail = err.Error()
	} else if !holds {
		f.Detail = "it did not take effect"
	}
	return f
}

func sameUID(pid int) bool {
	var st unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil && int(st.Uid) == os.Geteuid()
}
