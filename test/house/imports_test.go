package house

import (
	"slices"
	"strings"
	"testing"
)

// rule says which packages of ours a package may import. A path stands for
// itself, "path/..." also for everything below it.
type rule struct {
	pkg     string
	imports []string
}

// leaves know nothing of cjmd and may be used everywhere.
var leaves = []string{"internal/suggest"}

// rules is read from the top; the first line whose pkg matches counts. The
// arrows: cmd -> api, sched -> jobs, plugins, supervisor -> isolation, events,
// resource. What is not listed may not be imported.
var rules = []rule{
	{"internal/resource", nil},
	{"internal/suggest", nil},
	{"internal/manpages", nil},
	{"internal/events", nil},
	{"internal/isolation/...", []string{"internal/isolation/...", "internal/events", "internal/resource"}},
	{"internal/supervisor/transport/transporttest", []string{"internal/supervisor", "internal/isolation/...", "internal/events", "internal/resource"}},
	{"internal/supervisor/...", []string{"internal/supervisor/...", "internal/isolation", "internal/events", "internal/resource", "sdk/python"}},
	{"internal/plugins/...", []string{"internal/plugins/...", "internal/execspec", "internal/events", "internal/resource"}},
	{"internal/jobs/sqlitestore", []string{"internal/jobs/...", "internal/plugins", "internal/sched/learn", "internal/events", "internal/resource"}},
	{"internal/jobs/...", []string{"internal/jobs/...", "internal/events", "internal/resource"}},
	{"internal/sim", []string{"internal/resource"}},
	{"internal/execspec", nil},
	{"internal/execworker", []string{"internal/execspec", "internal/supervisor/transport/rpc/wire"}},
	{"internal/simserve", []string{"internal/sim", "internal/sched/simtest", "internal/supervisor/transport/rpc/wire", "internal/resource"}},
	{"internal/monitors/...", []string{"internal/monitors/...", "internal/sim", "internal/events", "internal/resource"}},
	{"internal/sched/simtest", []string{"internal/sched/...", "internal/sim", "internal/jobs/...", "internal/monitors/...", "internal/plugins", "internal/supervisor", "internal/events", "internal/resource"}},
	{"internal/sched/learn", []string{"internal/resource"}},
	{"internal/sched/...", []string{"internal/sched/...", "internal/jobs", "internal/jobs/joblog", "internal/plugins", "internal/supervisor", "internal/isolation", "internal/events", "internal/resource"}},
	{"internal/config", []string{"internal/events", "internal/resource"}},
	{"internal/api/wire", []string{"api"}},
	{"internal/api/...", []string{"api", "internal/api/...", "internal/jobs", "internal/jobs/joblog", "internal/plugins", "internal/supervisor", "internal/isolation", "internal/sched", "internal/sched/learn", "internal/events", "internal/resource"}},
	{"internal/client", []string{"internal/api/wire"}},
	{"cmd/cjm-ctl", []string{"internal/client", "internal/api/wire", "internal/config", "internal/plugins/...", "sdk/python", "internal/manpages"}},
	{"cmd/cjmd", []string{"api", "internal/...", "sdk/python"}},
	{"api", nil},
	{"sdk/python", nil},
	{"examples/...", nil},
	{"docs/...", []string{"internal/jobs", "internal/supervisor"}},
	{"bench/...", []string{"bench/...", "internal/...", "cmd/...", "sdk/python", "api"}},
	{"test/...", []string{"test/...", "internal/...", "cmd/...", "sdk/python", "api"}},
}

func covers(pattern, path string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return pattern == path
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"internal/jobs", "internal/jobs", true},
		{"internal/jobs", "internal/jobs/joblog", false},
		{"internal/jobs/...", "internal/jobs", true},
		{"internal/jobs/...", "internal/jobs/joblog", true},
		{"internal/jobs/...", "internal/jobsearch", false},
	} {
		if got := covers(c.pattern, c.path); got != c.want {
			t.Errorf("covers(%q, %q) = %v", c.pattern, c.path, got)
		}
	}
}

func TestImports_PointOneWay(t *testing.T) {
	t.Parallel()
	for _, p := range ours(t) {
		i := slices.IndexFunc(rules, func(r rule) bool { return covers(r.pkg, p.rel()) })
		if i < 0 {
			t.Errorf("package %s stands nowhere in the table of imports_test.go: say what it may import", p.rel())
			continue
		}
		for _, imp := range p.Imports {
			dep, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			if !slices.ContainsFunc(slices.Concat(leaves, rules[i].imports), func(pattern string) bool { return covers(pattern, dep) }) {
				t.Errorf("%s may not import %s (see the table in imports_test.go)", p.rel(), dep)
			}
		}
	}
}

// The sentences of the design, each on its own and through every step, so that
// a careless change of the table does not go unnoticed.
func TestImports_NeverReach(t *testing.T) {
	t.Parallel()
	never := []struct{ from, to, why string }{
		{"internal/supervisor/...", "internal/jobs/...", "the supervisor knows calls, not jobs"},
		{"internal/jobs", "internal/sched/...", "jobs knows no scheduler"},
		{"internal/jobs", "internal/supervisor/...", "jobs knows no worker"},
		{"internal/jobs", "internal/api/...", "jobs knows no HTTP"},
		{"internal/api", "internal/jobs/sqlitestore", "the API sees jobs through Queue"},
		{"internal/api", "internal/monitors/...", "the API sees the machine through an interface"},
		{"internal/api", "internal/sched/policy", "policies belong to the scheduler"},
		{"internal/sched", "internal/monitors/...", "the scheduler declares the Gate it needs"},
		{"internal/sched", "internal/api/...", "the scheduler knows no HTTP"},
		{"internal/monitors/...", "internal/sched/...", "a monitor knows no scheduler"},
		{"internal/plugins", "internal/jobs/...", "plugins know no job"},
		{"cmd/cjm-ctl", "internal/jobs/...", "the command line is a client"},
		{"cmd/cjm-ctl", "internal/supervisor/...", "the command line is a client"},
		{"internal/client", "internal/jobs/...", "a client sees the API alone"},
	}
	for _, p := range ours(t) {
		for _, n := range never {
			if !covers(n.from, p.rel()) {
				continue
			}
			for _, dep := range p.Deps {
				if covers(n.to, strings.TrimPrefix(dep, module+"/")) {
					t.Errorf("%s reaches %s: %s", p.rel(), dep, n.why)
				}
			}
		}
	}
}

func TestImports_TestingStaysInTests(t *testing.T) {
	t.Parallel()
	for _, p := range ours(t) {
		if forTests(p.rel()) || strings.HasPrefix(p.rel(), "bench") {
			continue
		}
		for _, imp := range p.Imports {
			if imp == "testing" || strings.HasPrefix(imp, "testing/") {
				t.Errorf("%s imports %s outside of a test", p.rel(), imp)
			}
			if dep, ok := strings.CutPrefix(imp, module+"/"); ok && forTests(dep) {
				t.Errorf("%s ships, but imports %s, which exists for tests", p.rel(), dep)
			}
		}
	}
}
