package cpu

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/resource"
)

// group is one cgroup directory whose limits hold for us: our own or one of
// its parents, as far as they can be seen from here.
type group struct {
	dir  string
	path string // within the hierarchy, for people
	v2   bool
}

// limits of a group; zero means none.
type limits struct {
	max, used resource.Bytes // used leaves out file cache that can be dropped
	cpus      int
}

// findGroups lists the cgroups above this process that can limit memory or
// CPU, in both versions. Where there are none, or they cannot be read, the
// host's own figures hold.
func findGroups(root string) []group {
	own := ownGroups(filepath.Join(root, "proc/self/cgroup"))
	var out []group
	for _, m := range mounts(filepath.Join(root, "proc/self/mountinfo")) {
		path, ok := own[m.controller]
		if !ok {
			continue
		}
		rel, err := filepath.Rel(m.root, path)
		if err != nil || strings.HasPrefix(rel, "..") {
			rel = "." // a container that sees only its own part of the hierarchy
		}
		for {
			dir := filepath.Join(root, m.point, rel)
			if st, err := os.Stat(dir); err == nil && st.IsDir() {
				out = append(out, group{dir: dir, path: filepath.Join("/", rel), v2: m.controller == ""})
			}
			if rel == "." {
				break
			}
			rel = filepath.Dir(rel)
		}
	}
	return out
}

// ownGroups reads /proc/self/cgroup: controller → path; "" is the v2 hierarchy.
func ownGroups(file string) map[string]string {
	out := make(map[string]string)
	eachLine(file, func(line string) {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			return
		}
		for _, c := range strings.Split(parts[1], ",") {
			out[c] = parts[2]
		}
	})
	return out
}

// mount is one mounted cgroup hierarchy that matters here.
type mount struct{ controller, root, point string }

// mounts reads /proc/self/mountinfo for the v2 hierarchy and for the v1 memory
// and cpu ones.
func mounts(file string) []mount {
	var out []mount
	eachLine(file, func(line string) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			return
		}
		switch r[0] {
		case "cgroup2":
			out = append(out, mount{controller: "", root: l[3], point: l[4]})
		case "cgroup":
			for _, opt := range strings.Split(r[2], ",") {
				if opt == "memory" || opt == "cpu" {
					out = append(out, mount{controller: opt, root: l[3], point: l[4]})
				}
			}
		}
	})
	return out
}

func (g *group) limits() limits {
	var l limits
	limitFile, usedFile, cacheKey := "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
	if g.v2 {
		limitFile, usedFile, cacheKey = "memory.max", "memory.current", "inactive_file"
	}
	// v1 says "none" by a number near the top of the range.
	if n, ok := g.number(limitFile); ok && n > 0 && n < 1<<60 {
		used, ok := g.number(usedFile)
		if ok {
			l.max = resource.Bytes(n)
			l.used = resource.Bytes(max(used-g.stat(cacheKey), 0))
		}
	}
	l.cpus = g.cpus()
	return l
}

// cpus is the CPU quota, rounded up to whole CPUs.
func (g *group) cpus() int {
	var quota, period int64
	if g.v2 {
		f := strings.Fields(g.text("cpu.max"))
		if len(f) != 2 || f[0] == "max" {
			return 0
		}
		quota, _ = strconv.ParseInt(f[0], 10, 64)
		period, _ = strconv.ParseInt(f[1], 10, 64)
	} else {
		quota, _ = g.number("cpu.cfs_quota_us")
		period, _ = g.number("cpu.cfs_period_us")
	}
	if quota <= 0 || period <= 0 {
		return 0
	}
	return int((quota + period - 1) / period)
}

// stat reads one value of memory.stat; 0 when it is not there.
func (g *group) stat(key string) int64 {
	var n int64
	eachLine(filepath.Join(g.dir, "memory.stat"), func(line string) {
		if rest, ok := strings.CutPrefix(line, key+" "); ok {
			n, _ = strconv.ParseInt(rest, 10, 64)
		}
	})
	return n
}

// number reads a file of one number; false for "max" or no file.
func (g *group) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(g.text(name), 10, 64)
	return n, err == nil
}

func (g *group) text(name string) string {
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// eachLine calls f for every line of a file; for none when it cannot be read.
func eachLine(file string, f func(string)) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f(s.Text())
	}
}
