// Package cgroup enables controllers in a cgroup v2 directory, sets the limits of
// one, and reads its pressure. It is own code over files: every write is read
// back, and what the kernel did not take is told, never assumed. It makes and
// removes no directory. Start with Enable and Apply.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/isolation"
)

// Limits of one tree of processes. Zero fields are not set.
type Limits struct {
	MemoryMax int64   // bytes, page cache included; the whole tree dies when it is exceeded
	PidsMax   int     // processes and threads
	CPUWeight int     // 1 to 10000, 100 is the kernel's default
	CPUMax    float64 // processors: 1.5 is one and a half
	IOWeight  int     // 1 to 10000, 100 is the kernel's default
}

// cpuPeriod is the kernel's default period of cpu.max, in microseconds.
const cpuPeriod = 100_000

// setting is one file of a cgroup and what shall stand in it.
type setting struct {
	mechanism, controller, file string
	value                       string // as it is written
	want                        string // as it is read back; "": like value
	optional                    bool   // kernels without the file hold the limit all the same
	shown                       string // for people; "": like value
}

func (l Limits) settings() []setting {
	var s []setting
	if l.MemoryMax > 0 {
		page := int64(os.Getpagesize())
		limit := max(page, l.MemoryMax/page*page) // the kernel rounds down to pages
		high := limit - limit/16/page*page
		mb := fmt.Sprintf("%d MiB", limit>>20)
		s = append(s,
			setting{mechanism: "memory", controller: "memory", file: "memory.max", value: strconv.FormatInt(limit, 10), shown: mb},
			// Shortly before the limit the kernel takes back page cache and slows the
			// tree down, instead of killing it over a file that it has read.
			setting{mechanism: "memory_high", controller: "memory", file: "memory.high", value: strconv.FormatInt(high, 10), shown: fmt.Sprintf("%d MiB", high>>20)},
			setting{mechanism: "memory_oom_group", controller: "memory", file: "memory.oom.group", value: "1", shown: "the whole tree"},
			// Else the tree goes on in swap, and the whole machine with it.
			setting{mechanism: "memory_swap", controller: "memory", file: "memory.swap.max", value: "0", optional: true, shown: "no swap"},
		)
	}
	if l.PidsMax > 0 {
		s = append(s, setting{mechanism: "pids", controller: "pids", file: "pids.max", value: strconv.Itoa(l.PidsMax)})
	}
	if l.CPUWeight > 0 {
		s = append(s, setting{mechanism: "cpu_weight", controller: "cpu", file: "cpu.weight", value: strconv.Itoa(l.CPUWeight)})
	}
	if l.CPUMax > 0 {
		quota := max(1000, int64(math.Round(l.CPUMax*cpuPeriod))) // the kernel takes no less than 1 ms
		s = append(s, setting{
			mechanism: "cpu_max", controller: "cpu", file: "cpu.max", value: fmt.Sprintf("%d %d", quota, cpuPeriod),
			shown: strconv.FormatFloat(l.CPUMax, 'g', -1, 64) + " processors",
		})
	}
	if l.IOWeight > 0 {
		v := strconv.Itoa(l.IOWeight)
		s = append(s, setting{mechanism: "io_weight", controller: "io", file: "io.weight", value: v, want: "default " + v})
	}
	return s
}

// Apply sets the limits of dir and returns a fact for each that was asked for.
// missing says why a controller is not enabled there; what else it would have held
// is not told besides.
func Apply(dir string, l Limits, missing func(controller string) string) []isolation.Fact {
	var facts []isolation.Fact
	told := map[string]bool{}
	for _, s := range l.settings() {
		if told[s.controller] {
			continue
		}
		f := isolation.Fact{Mechanism: s.mechanism, Requested: true, VerifiedBy: "read back from " + s.file}
		err := set(filepath.Join(dir, s.file), s)
		switch {
		case err == nil:
			f.InForce = true
			if f.Detail = s.shown; f.Detail == "" {
				f.Detail = s.value
			}
		case !errors.Is(err, fs.ErrNotExist):
			f.Detail = err.Error()
		case s.optional && missing(s.controller) == "":
			continue
		default:
			if f.Detail = missing(s.controller); f.Detail == "" {
				f.Detail = "this kernel has no " + s.file
			} else {
				told[s.controller] = true
			}
		}
		facts = append(facts, f)
	}
	return facts
}

func set(path string, s setting) error {
	if err := write(path, s.value); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	want := s.want
	if want == "" {
		want = s.value
	}
	if got := strings.TrimSpace(string(b)); got != want {
		return fmt.Errorf("%s holds %q after %q was written", s.file, got, s.value)
	}
	return nil
}

// write never makes a file: where the kernel has none, there is no such limit.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Wanted are the controllers in the order in which they are enabled: some kernels
// refuse memory once another one is.
func Wanted() []string { return []string{"memory", "pids", "cpu", "io"} }

// Enable enables the controllers for the children of dir and returns, for each
// that is not enabled then, why.
func Enable(dir string) map[string]string {
	missing := map[string]string{}
	for _, c := range Wanted() {
		if !Has(dir, "cgroup.controllers", c) {
			missing[c] = fmt.Sprintf("controller %s is not available in %s (not delegated, or in use by cgroup v1)", c, dir)
			continue
		}
		if Has(dir, "cgroup.subtree_control", c) {
			continue
		}
		err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		switch {
		case err != nil:
			missing[c] = fmt.Sprintf("cannot enable controller %s: %v", c, err)
		case !Has(dir, "cgroup.subtree_control", c):
			missing[c] = fmt.Sprintf("controller %s was enabled in %s and is not there", c, dir)
		}
	}
	return missing
}

// Has reports whether a word stands in one of the lists of a cgroup.
func Has(dir, file, word string) bool {
	b, err := os.ReadFile(filepath.Join(dir, file))
	return err == nil && slices.Contains(strings.Fields(string(b)), word)
}

// Processes lists what is in dir itself.
func Processes(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, word := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("cannot read the processes of %s: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Move puts a process into dir, all its threads with it.
func Move(dir string, pid int) error {
	if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("cannot move process %d to another cgroup: %w", pid, err)
	}
	return nil
}
