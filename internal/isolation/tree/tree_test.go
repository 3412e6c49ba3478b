package tree_test

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
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

var strategies = []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper}

// setup returns a Host that may use only s; it skips where the machine lacks s.
func setup(t *testing.T, s tree.Strategy) *tree.Host {
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
	if _, err := h.Strategy(t.Context()); err != nil {
		t.Skip(err)
	}
	return h
}

// survivors lists processes that have entry in their environment.
func survivors(t *testing.T, entry string) []proc.Stat {
	t.Helper()
	all, err := proc.All()
	if err != nil {
		t.Fatal(err)
	}
	var out []proc.Stat
	for pid, s := range all {
		if !s.Dead() && pid != os.Getpid() && proc.HasEnvPrefix(pid, entry) {
			out = append(out, s)
		}
	}
	return out
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not see: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestKill_TreeWithDaemonsAndTermIgnorers(t *testing.T) {
	for _, s := range strategies {
		t.Run(string(s), func(t *testing.T) {
			h := setup(t, s)
			sb, err := h.Sandbox(t.Context(), "tree/1", tree.Confine{NoNewPrivs: true, DeathSig: true})
			if err != nil {
				t.Fatal(err)
			}
			mark := "CJM_TREE_TEST=" + t.Name()
			// Six beside the leader: plain, TERM-ignoring, in a session of its own,
			// and one whose parent has gone.
			cmd := exec.Command("sh", "-c", `
				sleep 300 & sleep 300 &
				(trap "" TERM; sleep 300; sleep 300) &
				setsid sh -c 'sleep 300 & sleep 300 & wait' &
				(setsid sleep 300 &)
				wait`)
			cmd.Env = append(os.Environ(), mark)
			if err := sb.Start(cmd); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the tree", func() bool { return len(survivors(t, mark)) >= 8 })
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			began := time.Now()
			if err := sb.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("gone after %v", time.Since(began))
			if left := survivors(t, mark); len(left) > 0 || !sb.Empty() {
				t.Errorf("left behind: %v (empty: %v)", left, sb.Empty())
			}
			st, err := sb.Wait()
			if err != nil || st.Signal != 9 {
				t.Errorf("leader ended %+v, %v", st, err)
			}
			if err := sb.Close(); err != nil {
				t.Error(err)
			}
			t.Logf("%+v", sb.Report())
		})
	}
}

func TestKill_RunningForkBomb(t *testing.T) {
	for _, s := range strategies {
		t.Run(string(s), func(t *testing.T) {
			h := setup(t, s)
			sb, err := h.Sandbox(t.Context(), "bomb.1", tree.Confine{})
			if err != nil {
				t.Fatal(err)
			}
			mark := "CJM_TREE_TEST=" + t.Name()
			// Six that fork orphans without end; each orphan lives a moment, which
			// bounds how many there are at a time.
			cmd := exec.Command("sh", "-c", `for i in 1 2 3 4 5 6; do (while :; do (setsid sleep 0.2 &); done) & done; wait`)
			cmd.Env = append(os.Environ(), mark)
			if err := sb.Start(cmd); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the swarm", func() bool { return len(survivors(t, mark)) >= 60 })
			kill(t, sb, mark)
		})
	}
}

func TestKill_TwoHundredProcesses(t *testing.T) {
	for _, s := range strategies {
		t.Run(string(s), func(t *testing.T) {
			h := setup(t, s)
			sb, err := h.Sandbox(t.Context(), "many.1", tree.Confine{})
			if err != nil {
				t.Fatal(err)
			}
			mark := "CJM_TREE_TEST=" + t.Name()
			cmd := exec.Command("sh", "-c", `trap "" TERM; i=0; while [ $i -lt 200 ]; do sleep 300 & i=$((i+1)); done; wait`)
			cmd.Env = append(os.Environ(), mark)
			if err := sb.Start(cmd); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "200 processes", func() bool { return len(survivors(t, mark)) >= 200 })
			kill(t, sb, mark)
		})
	}
}

// kill ends the sandbox within the goal of two seconds and checks what is left.
func kill(t *testing.T, sb isolation.Sandbox, mark string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	began := time.Now()
	if err := sb.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("gone after %v", time.Since(began))
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if left := survivors(t, mark); len(left) > 0 || !sb.Empty() {
		t.Errorf("left behind: %v (empty: %v)", left, sb.Empty())
	}
	if _, err := sb.Wait(); err != nil {
		t.Error(err)
	}
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
}

// A worker that kills its own shim frees its tree from it; the marker finds it.
func TestKill_AfterTheWorkerKilledItsShim(t *testing.T) {
	h := setup(t, tree.Subreaper)
	sb, err := h.Sandbox(t.Context(), "patricide.1", tree.Confine{})
	if err != nil {
		t.Fatal(err)
	}
	mark := "CJM_TREE_TEST=" + t.Name()
	cmd := exec.Command("sh", "-c", `sleep 300 & (setsid sleep 300 &); kill -KILL $PPID; wait`)
	cmd.Env = append(os.Environ(), mark)
	if err := sb.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Wait(); err != nil { // the shim's end is all there is to see
		t.Fatal(err)
	}
	if len(survivors(t, mark)) == 0 {
		t.Fatal("nothing survived the shim: the test shows nothing")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := sb.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if left := survivors(t, mark); len(left) > 0 || !sb.Empty() {
		t.Errorf("left: %v", left)
	}
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
}

// A worker with enough rights may make cgroups of its own below its leaf.
func TestCgroup_NestedOnesGoToo(t *testing.T) {
	h := setup(t, tree.Cgroup)
	sb, err := h.Sandbox(t.Context(), "nested.1", tree.Confine{})
	if err != nil {
		t.Fatal(err)
	}
	mark := "CJM_TREE_TEST=" + t.Name()
	cmd := exec.Command("sh", "-c", `
		root=$(awk '$9 == "cgroup2" || $8 == "cgroup2" {print $5; exit}' /proc/self/mountinfo)
		own=$root$(sed -n 's/^0:://p' /proc/self/cgroup)
		mkdir -p $own/a/b && (echo 0 > $own/a/b/cgroup.procs; exec sleep 300) & wait`)
	cmd.Env = append(os.Environ(), mark)
	if err := sb.Start(cmd); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a process below", func() bool {
		for _, s := range survivors(t, mark) {
			if s.Comm == "sleep" && strings.HasSuffix(proc.Cgroup(s.PID), "/a/b") {
				return true
			}
		}
		return false
	})
	kill(t, sb, mark)
}

func TestGuardian_IsReplacedWhenKilled(t *testing.T) {
	h := setup(t, tree.Cgroup)
	sb, err := h.Sandbox(t.Context(), "guarded.1", tree.Confine{})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	guardians := func() (found []proc.Stat) {
		all, err := proc.All()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all.Below(os.Getpid()) {
			args, _ := os.ReadFile("/proc/" + strconv.Itoa(c.PID) + "/cmdline")
			if !c.Dead() && strings.Contains(string(args), tree.VerbGuardian) {
				found = append(found, c)
			}
		}
		return found
	}
	waitFor(t, "the guardian", func() bool { return len(guardians()) == 1 })
	first := guardians()[0]
	if err := proc.Signal(first.ID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "another guardian", func() bool {
		g := guardians()
		return len(g) == 1 && g[0].ID() != first.ID()
	})
}

func TestStrategy_NextOneWhenTheBestCannotBeHad(t *testing.T) {
	h, err := tree.New(tree.Options{ReexecEnv: quickExit(), StateDir: t.TempDir(), CgroupParent: t.TempDir(), Strategies: []tree.Strategy{tree.Cgroup, tree.Subreaper}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if s, err := h.Strategy(t.Context()); err != nil || s != tree.Subreaper {
		t.Fatalf("got %q, %v", s, err)
	}
	sb, err := h.Sandbox(t.Context(), "x.1", tree.Confine{})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	for _, f := range sb.Report() {
		if f.Mechanism == "tree_kill" && !strings.Contains(f.Detail, "no cgroup:") {
			t.Errorf("the report does not say why it is not better: %+v", f)
		}
	}
	none, err := tree.New(tree.Options{ReexecEnv: quickExit(), StateDir: t.TempDir(), CgroupParent: t.TempDir(), Strategies: []tree.Strategy{tree.Cgroup}})
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if _, err := none.Sandbox(t.Context(), "x.1", tree.Confine{}); err == nil || !strings.Contains(err.Error(), "cgroup v2") {
		t.Errorf("got %v", err)
	}
}

// What a daemon on another state directory runs is none of our business.
func TestReclaim_LeavesOthersAlone(t *testing.T) {
	for _, s := range strategies {
		t.Run(string(s), func(t *testing.T) {
			ours, theirs := setup(t, s), setup(t, s)
			sb, err := theirs.Sandbox(t.Context(), "w.1", tree.Confine{})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sleep", "300")
			cmd.Env = os.Environ()
			if err := sb.Start(cmd); err != nil {
				t.Fatal(err)
			}
			if n, err := ours.Reclaim(t.Context()); n != 0 || err != nil {
				t.Errorf("swept %d, %v", n, err)
			}
			if sb.Empty() {
				t.Error("the other's worker is gone")
			}
			if err := sb.Kill(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := sb.Wait(); err != nil {
				t.Error(err)
			}
			if err := sb.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
