package contained_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/contained"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

// What a worker of these tests is told to be, as the first argument.
const (
	hog    = "be-a-hog"    // takes memory in a child until it is ended
	forker = "be-a-forker" // starts as many children as it can and says how many
	burner = "be-a-burner" // uses one processor until it is ended
)

func TestMain(m *testing.M) {
	if code, ok := reexec.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case hog:
			beHog()
		case forker:
			beForker()
		case burner:
			for {
				_ = strconv.Itoa(os.Getpid())
			}
		}
	}
	goleak.VerifyTestMain(m)
}

func beHog() {
	if len(os.Args) == 2 {
		child := exec.Command("/proc/self/exe", hog, "child")
		if err := child.Start(); err != nil {
			panic(err)
		}
		time.Sleep(time.Hour) // the kernel must end this one along with its child
	}
	for kept := [][]byte{}; ; {
		kept = append(kept, make([]byte, 1<<20))
		for i := 0; i < 1<<20; i += 4096 {
			kept[len(kept)-1][i] = 1
		}
	}
}

func beForker() {
	started := 0
	for range 100 {
		if exec.Command("sleep", "300").Start() == nil {
			started++
		}
	}
	fmt.Println(started)
	time.Sleep(time.Hour)
}

func prepare(t *testing.T, needs string, spec isolation.Spec) isolation.Sandbox {
	t.Helper()
	host, err := tree.New(tree.Options{ReexecEnv: []string{"GORACE=atexit_sleep_ms=0"}, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	tier := contained.New(host)
	if err := tier.Probe(t.Context()); err != nil {
		t.Skip(err)
	}
	if why := host.MissingController(needs); why != "" {
		t.Skip(why)
	}
	spec.Name = "worker.1"
	sb, err := tier.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // that of the test has ended
		defer cancel()
		if err := sb.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := sb.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, f := range sb.Report() {
		if f.Requested && !f.InForce && f.Mechanism != "session" {
			t.Errorf("not in force: %+v", f)
		}
	}
	return sb
}

func worker(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", role)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return cmd
}

func TestContained_AMemoryHogEndsWholeAndIsKnownForIt(t *testing.T) {
	sb := prepare(t, "memory", isolation.Spec{MemoryMax: 64 << 20})
	if err := sb.Start(worker(hog)); err != nil {
		t.Fatal(err)
	}
	if st, err := sb.Wait(); err != nil || st.Signal != syscall.SIGKILL {
		t.Errorf("the parent of the hog ended %+v, %v", st, err)
	}
	u, err := sb.Usage()
	if err != nil || u.OOMKills == 0 {
		t.Errorf("usage %+v, %v: nothing says that memory ran out", u, err)
	}
}

func TestContained_ForksEndAtTheLimit(t *testing.T) {
	sb := prepare(t, "pids", isolation.Spec{PidsMax: 40})
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := worker(forker)
	cmd.Stdout = w
	err = sb.Start(cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := out.Read(buf)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	started, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil || started == 0 || started >= 40 {
		t.Errorf("%d children, %v", started, err)
	}
	if err := sb.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Wait(); err != nil {
		t.Error(err)
	}
}

func TestContained_AProcessorIsShared(t *testing.T) {
	sb := prepare(t, "cpu", isolation.Spec{CPUMax: 0.2, CPUWeight: 50})
	began := time.Now()
	if err := sb.Start(worker(burner)); err != nil {
		t.Fatal(err)
	}
	// Half a processor second takes two and a half; nothing tells when it is used up.
	for {
		u, err := sb.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if u.CPUTime >= 500*time.Millisecond {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("half a processor second in %v at a fifth of a processor", took)
	}
	if err := sb.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Wait(); err != nil {
		t.Error(err)
	}
}

// A tree of two hundred, by the way that tiers of cgroups share.
func BenchmarkKillTree(b *testing.B) {
	host, err := tree.New(tree.Options{StateDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	tier := contained.New(host)
	if err := tier.Probe(b.Context()); err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		b.StopTimer()
		sb, err := tier.Prepare(b.Context(), isolation.Spec{Name: "bench.1"})
		if err != nil {
			b.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", `i=0; while [ $i -lt 199 ]; do setsid sleep 300 >/dev/null & i=$((i+1)); done; echo up; wait`)
		cmd.Stdout = w
		if err := sb.Start(cmd); err != nil {
			b.Fatal(err)
		}
		w.Close()
		if _, err := r.Read(make([]byte, 3)); err != nil {
			b.Fatal(err)
		}
		r.Close()
		b.StartTimer()
		if err := sb.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := sb.Wait(); err != nil {
			b.Fatal(err)
		}
		if err := sb.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
