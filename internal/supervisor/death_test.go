package supervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/basic"
	"github.com/cjmd/cjmd/internal/isolation/none"
	"github.com/cjmd/cjmd/internal/isolation/proc"
	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
)

// verbDaemon makes this test program a daemon with one loaded worker:
// STATE STRATEGY WORKER FLAGS…; it prints "ready" and waits to be killed.
const verbDaemon = "test-daemon"

type fixedCatalog supervisor.Spec

func (c fixedCatalog) Spec(context.Context, string, []string) (supervisor.Spec, error) {
	return supervisor.Spec(c), nil
}

func daemonMain(args []string) int {
	fail := func(err error) int {
		fmt.Println("failed:", err)
		return 1
	}
	host, err := tree.New(tree.Options{ReexecEnv: quickExit(), StateDir: args[0], Strategies: []tree.Strategy{tree.Strategy(args[1])}})
	if err != nil {
		return fail(err)
	}
	tier := none.New(host)
	if args[1] == string(tree.Subreaper) { // with PDEATHSIG of the leader on top
		tier = basic.New(host)
	}
	sup, err := supervisor.New(supervisor.Options{
		Catalog: fixedCatalog{
			Instance: "w", Plugin: "test", Transport: "native", Command: args[2:], Dir: args[0], Env: os.Environ(),
			Hello: supervisor.Hello{Instance: "w", Plugin: "test", Config: []byte("{}"), Concurrent: 1},
		},
		Transports: []supervisor.Transport{rpc.New(rpc.Options{})}, Tiers: []isolation.Tier{tier}, LogRoot: args[0] + "/log",
	})
	if err != nil {
		return fail(err)
	}
	if err := sup.EnsureReady(context.Background(), "w"); err != nil {
		return fail(err)
	}
	fmt.Println("ready")
	if err := sup.Run(context.Background()); err != nil {
		return fail(err)
	}
	return 0
}

// startDaemon runs a daemon whose whole family carries mark.
func startDaemon(t *testing.T, state string, s tree.Strategy, mark string, flags ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{verbDaemon, state, string(s), testWorker}, flags...)...)
	cmd.Env = append(os.Environ(), mark)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if strings.Contains(line, "cannot end process trees") {
			t.Skip(line)
		}
		t.Fatalf("daemon said %q, %v", line, err)
	}
	return cmd
}

func marked(t *testing.T, mark string) []proc.Stat {
	t.Helper()
	all, err := proc.All()
	if err != nil {
		t.Fatal(err)
	}
	var out []proc.Stat
	for pid, s := range all {
		if !s.Dead() && proc.HasEnvPrefix(pid, mark) {
			out = append(out, s)
		}
	}
	return out
}

func TestDaemonDeath_NoProcessOutlivesIt(t *testing.T) {
	for _, s := range []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper} {
		t.Run(string(s), func(t *testing.T) {
			state, mark := t.TempDir(), "CJM_DEATH_TEST="+t.Name()+"#"
			cmd := startDaemon(t, state, s, mark, "-fork", "3", "-setsid", "4", "-ignore")
			if n := len(marked(t, mark)); n < 9 {
				t.Fatalf("only %d processes", n)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_ = cmd.Wait()
			for len(marked(t, mark)) > 0 {
				if time.Since(began) > 5*time.Second {
					t.Fatalf("alive after 5 s: %v", marked(t, mark))
				}
				time.Sleep(time.Millisecond)
			}
			t.Logf("all gone after %v", time.Since(began))
		})
	}
}

// The sweep is the last layer: here the shim and the guardian are killed first.
func TestReclaim_EndsWhatOutlivedTheOtherLayers(t *testing.T) {
	for _, s := range []tree.Strategy{tree.Cgroup, tree.Subreaper} {
		t.Run(string(s), func(t *testing.T) {
			state, mark := t.TempDir(), "CJM_DEATH_TEST="+t.Name()+"#"
			cmd := startDaemon(t, state, s, mark, "-setsid", "4")
			// Stopped, the daemon cannot replace its guardian.
			self, err := proc.Read(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := proc.Signal(self.ID(), 19); err != nil {
				t.Fatal(err)
			}
			helpers := 0
			all, err := proc.All()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range all.Below(cmd.Process.Pid) {
				args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.PID))
				if strings.Contains(string(args), tree.VerbGuardian) || strings.Contains(string(args), tree.VerbShim) {
					helpers++
					if err := proc.Signal(c.ID(), 9); err != nil {
						t.Fatal(err)
					}
				}
			}
			if helpers != 1 {
				t.Fatalf("%d helpers", helpers)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			host, err := tree.New(tree.Options{ReexecEnv: quickExit(), StateDir: state})
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			n, err := host.Reclaim(t.Context())
			if err != nil || n < 4 {
				t.Errorf("the sweep ended %d, %v", n, err)
			}
			if left := marked(t, mark); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
