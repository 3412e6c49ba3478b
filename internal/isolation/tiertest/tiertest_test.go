package tiertest_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/basic"
	"github.com/cjmd/cjmd/internal/isolation/contained"
	"github.com/cjmd/cjmd/internal/isolation/none"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/isolation/sandboxed"
	"github.com/cjmd/cjmd/internal/isolation/tiertest"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

func TestMain(m *testing.M) {
	if code, ok := reexec.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// quickExit keeps the race detector from sleeping a second at the end of every helper process.
func quickExit() []string { return []string{"GORACE=atexit_sleep_ms=0"} }

// Every tier by every way to end a tree.
func TestTiers(t *testing.T) {
	for name, tier := range map[string]func(*tree.Host) isolation.Tier{"none": none.New, "basic": basic.New, "contained": contained.New, "sandboxed": newSandboxed} {
		for _, s := range []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper} {
			t.Run(name+"/"+string(s), func(t *testing.T) {
				tiertest.Run(t, func(t *testing.T) isolation.Tier { return tier(newHost(t, s)) })
			})
		}
	}
}

func newSandboxed(h *tree.Host) isolation.Tier { return sandboxed.New(h, sandboxed.Options{}) }

func newHost(t *testing.T, s tree.Strategy) *tree.Host {
	t.Helper()
	h, err := tree.New(tree.Options{ReexecEnv: quickExit(), StateDir: t.TempDir(), Strategies: []tree.Strategy{s}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestBasic_LimitsAreInForceAndInherited(t *testing.T) {
	for _, s := range []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper} {
		t.Run(string(s), func(t *testing.T) {
			tier := basic.New(newHost(t, s))
			if err := tier.Probe(t.Context()); err != nil {
				t.Skip(err)
			}
			sb, err := tier.Prepare(t.Context(), isolation.Spec{Name: "limits.1", NoFile: 333, Nice: 7})
			if err != nil {
				t.Fatal(err)
			}
			defer sb.Close()
			// The shell waits for the daemon's go, as a worker waits for hello.
			stdin, goOn, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			out, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", "-c", `read go; sh -c 'ulimit -n; ulimit -c; cut -d" " -f19 /proc/self/stat; cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status; test $(id -u) = 0 || grep CapEff /proc/self/status'`)
			cmd.Env, cmd.Stdin, cmd.Stdout = os.Environ(), stdin, w
			if err := sb.Start(cmd); err != nil {
				t.Fatal(err)
			}
			w.Close()
			stdin.Close()
			if _, err := goOn.WriteString("go\n"); err != nil {
				t.Fatal(err)
			}
			goOn.Close()
			buf := make([]byte, 4096)
			var got strings.Builder
			for {
				n, err := out.Read(buf)
				got.Write(buf[:n])
				if err != nil {
					break
				}
			}
			out.Close()
			if _, err := sb.Wait(); err != nil {
				t.Fatal(err)
			}
			want := "333\n0\n7\n500\nNoNewPrivs:\t1\n"
			if os.Geteuid() != 0 { // a user namespace gives capabilities; none may reach a worker
				want += "CapEff:\t0000000000000000\n"
			}
			if got.String() != want {
				t.Errorf("inside: %q, want %q", got.String(), want)
			}
			for _, f := range sb.Report() {
				if f.Requested && !f.InForce {
					t.Errorf("not in force: %+v", f)
				}
			}
			if err := sb.Kill(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}
