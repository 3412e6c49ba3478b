package tree_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

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

var strategies = []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper}

// setup returns a Host that may use only s; it skips where the machine lacks s.
func setup(t *testing.T, s tree.Strategy) *tree.Host {
	t.Helper()
	h, err := tree.New(tree.Options{StateDir: t.TempDir(), Strategies: []tree.Strategy{s}})
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
