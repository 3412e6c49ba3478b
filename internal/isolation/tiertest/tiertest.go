// Package tiertest is the conformance suite of isolation.Tier. A tier's test
// calls Run with a constructor; a tier that this machine cannot have is skipped
// with what its Probe says is missing.
package tiertest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/isolation"
)

// Run tests the tier that open returns; open registers its own cleanup.
func Run(t *testing.T, open func(t *testing.T) isolation.Tier) {
	for _, c := range []struct {
		name string
		test func(*testing.T, isolation.Tier)
	}{
		{"ExitStatusIsTheLeaders", exitStatus},
		{"KillEndsWhatLeftItsParentAndItsSession", killTree},
		{"KillOfAnEmptyTreeAndTwice", killEmpty},
		{"EnvironmentIsCleanAndStreamsAreOurs", environment},
		{"SignalGoesToTheLeader", signal},
		{"UsageCountsTheTree", usage},
		{"PIDsAreThoseOfTheTree", pids},
		{"StartThatFailsLeavesNothing", startFails},
		{"ReportSaysWhatHoldsAndWhatDoesNot", report},
	} {
		t.Run(c.name, func(t *testing.T) {
			tier := open(t)
			if err := tier.Probe(t.Context()); err != nil {
				t.Skip(err)
			}
			c.test(t, tier)
		})
	}
}

func prepare(t *testing.T, tier isolation.Tier, spec isolation.Spec) isolation.Sandbox {
	t.Helper()
	spec.Name = strings.ReplaceAll(t.Name(), "/", ".") + ".1"
	sb, err := tier.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := sb.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
	return sb
}

func shell(script string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1", "LISTEN_FDS=1", "KEEP=me"}
	return cmd
}

func start(t *testing.T, sb isolation.Sandbox, cmd *exec.Cmd) {
	t.Helper()
	if err := sb.Start(cmd); err != nil {
		t.Fatal(err)
	}
}

func end(t *testing.T, sb isolation.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := sb.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if !sb.Empty() {
		t.Error("not empty after Kill")
	}
}

// startSaying starts cmd and returns what it printed up to the first end of
// line, which it prints when it is where the test wants it.
func startSaying(t *testing.T, sb isolation.Sandbox, cmd *exec.Cmd) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = w
	err = sb.Start(cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var said []byte
	for b := make([]byte, 1); ; {
		if _, err := r.Read(b); err != nil || b[0] == '\n' {
			return string(said)
		}
		said = append(said, b[0])
	}
}

func exitStatus(t *testing.T, tier isolation.Tier) {
	for script, want := range map[string]isolation.ExitStatus{
		"exit 0": {}, "exit 42": {Code: 42}, "kill -SEGV $$": {Signal: syscall.SIGSEGV}, "kill -KILL $$": {Signal: syscall.SIGKILL},
	} {
		t.Run(script, func(t *testing.T) {
			sb := prepare(t, tier, isolation.Spec{})
			start(t, sb, shell(script))
			if got, err := sb.Wait(); err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
			end(t, sb)
		})
	}
}

func killTree(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	startSaying(t, sb, shell(`trap "" TERM; (setsid sleep 300 >/dev/null &) ; sleep 300 >/dev/null & echo up; wait`))
	if sb.Empty() {
		t.Error("empty before Kill")
	}
	end(t, sb)
	if st, err := sb.Wait(); err != nil || st.Signal != syscall.SIGKILL {
		t.Errorf("leader ended %+v, %v", st, err)
	}
}

func killEmpty(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	end(t, sb) // before the start
	start(t, sb, shell("exit 0"))
	if _, err := sb.Wait(); err != nil {
		t.Fatal(err)
	}
	end(t, sb)
	end(t, sb)
}

func environment(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	extra, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	cmd := shell("env; echo fds: /proc/self/fd/*; cat <&0; test -e /proc/self/fd/3 && echo has three")
	cmd.Stdout, cmd.ExtraFiles = w, []*os.File{extra}
	start(t, sb, cmd)
	w.Close()
	extra.Close()
	out, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Wait(); err != nil {
		t.Fatal(err)
	}
	end(t, sb)
	got := string(out)
	for _, bad := range []string{"NOTIFY_SOCKET", "WATCHDOG", "LISTEN_"} {
		if strings.Contains(got, bad) {
			t.Errorf("the environment has %s:\n%s", bad, got)
		}
	}
	for _, good := range []string{"KEEP=me", "has three"} {
		if !strings.Contains(got, good) {
			t.Errorf("no %q in:\n%s", good, got)
		}
	}
}

func signal(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	startSaying(t, sb, shell(`trap "exit 9" TERM; echo up; while :; do sleep 0.01; done`))
	if sb.PID() == 0 {
		t.Error("no pid")
	}
	if err := sb.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st, err := sb.Wait(); err != nil || st.Code != 9 {
		t.Errorf("ended %+v, %v", st, err)
	}
	if err := sb.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
	end(t, sb)
}

func usage(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	startSaying(t, sb, shell(`sleep 300 >/dev/null & sleep 300 >/dev/null & i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo up; wait`))
	u, err := sb.Usage()
	if err != nil || u.Processes != 3 || u.RSS <= 0 || u.CPUTime <= 0 {
		t.Errorf("got %+v, %v", u, err)
	}
	end(t, sb)
	if _, err := sb.Wait(); err != nil {
		t.Error(err)
	}
}

// pids: the leader, its child and one that left parent and session are told, as
// the host numbers them; afterwards nobody is.
func pids(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	startSaying(t, sb, shell(`(setsid sleep 301 >/dev/null &) ; sleep 302 >/dev/null & echo up; wait`))
	ours := func(pids []int) bool {
		var found []string
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				t.Logf("process %d: %v", pid, err)
			}
			found = append(found, strings.Fields(strings.ReplaceAll(string(b), "\x00", " "))...)
		}
		return slices.IsSorted(pids) && len(pids) == 3 && slices.Contains(pids, sb.PID()) &&
			slices.Contains(found, "301") && slices.Contains(found, "302")
	}
	eventually(t, "three processes", func() bool { return ours(sb.PIDs()) }) // the shells between them end
	if u, err := sb.Usage(); err != nil || !ours(u.PIDs) {
		t.Errorf("usage of %v, %v", u.PIDs, err)
	}
	end(t, sb)
	if _, err := sb.Wait(); err != nil {
		t.Error(err)
	}
	eventually(t, "nobody", func() bool { return len(sb.PIDs()) == 0 })
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
	if left := sb.PIDs(); len(left) > 0 {
		t.Errorf("after Close: %v", left)
	}
}

// eventually polls what a kernel has no event for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("never saw %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func startFails(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{})
	if err := sb.Start(&exec.Cmd{Path: "/no/such/program", Args: []string{"x"}, Env: []string{}}); err == nil {
		t.Fatal("started a program that does not exist")
	}
	end(t, sb)
}

func report(t *testing.T, tier isolation.Tier) {
	sb := prepare(t, tier, isolation.Spec{MemoryMax: 1 << 40, PidsMax: 1 << 20, NoFile: 512, Nice: 3})
	startSaying(t, sb, shell("echo up; sleep 300"))
	seen := map[string]isolation.Fact{}
	for _, f := range sb.Report() {
		seen[f.Mechanism] = f
		if f.Requested && !f.InForce && f.Detail == "" {
			t.Errorf("%s is missing without a reason", f.Mechanism)
		}
		if f.InForce && f.VerifiedBy == "" {
			t.Errorf("%s is said to hold and nothing verified it", f.Mechanism)
		}
	}
	for _, must := range []string{"tree_kill", "daemon_death", "session"} {
		if !seen[must].InForce {
			t.Errorf("%s: %+v", must, seen[must])
		}
	}
	for _, asked := range []string{"memory", "pids", "nice"} {
		if !seen[asked].Requested {
			t.Errorf("%s was asked for and is not reported", asked)
		}
	}
	end(t, sb)
	if _, err := sb.Wait(); err != nil {
		t.Error(err)
	}
}
