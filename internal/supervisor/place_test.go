package supervisor_test

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// env returns one variable of the running worker's environment.
func (b *box) env(name string) (string, bool) {
	b.t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(b.status().PID) + "/environ")
	if err != nil {
		b.t.Fatal(err)
	}
	for kv := range strings.SplitSeq(string(text), "\x00") {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

func (b *box) stop() {
	b.t.Helper()
	if err := b.Stop(b.t.Context(), "w", "test"); err != nil {
		b.t.Fatal(err)
	}
}

func TestPlace_IsForTheNextStart(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	first := []string{"GPU-a", "GPU-b"}
	b.Place("w", first)
	first[0] = "changed by its owner"
	b.ready()
	if st := b.status(); !slices.Equal(st.Devices, []string{"GPU-a", "GPU-b"}) || st.NextDevices != nil {
		t.Errorf("sits on %v, next %v", st.Devices, st.NextDevices)
	}
	if v, _ := b.env("DEVICES"); v != "GPU-a,GPU-b" {
		t.Errorf("the worker was given %q", v)
	}

	b.Place("w", []string{"GPU-c"})
	for range 3 {
		b.ready() // it stays where it is: whoever places it decides
	}
	if st := b.status(); st.Generation != 1 || !slices.Equal(st.Devices, []string{"GPU-a", "GPU-b"}) || !slices.Equal(st.NextDevices, []string{"GPU-c"}) {
		t.Errorf("generation %d on %v, next %v", st.Generation, st.Devices, st.NextDevices)
	}
	if n := strings.Count(b.said(), "asked for on GPU-c, stays on GPU-a, GPU-b"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, b.said())
	}

	b.stop()
	if st := b.status(); st.Devices != nil || st.NextDevices != nil || st.PIDs != nil {
		t.Errorf("a stopped worker sits on %v, next %v, processes %v", st.Devices, st.NextDevices, st.PIDs)
	}
	b.ready()
	if v, _ := b.env("DEVICES"); v != "GPU-c" {
		t.Errorf("the next worker was given %q", v)
	}
	if !strings.Contains(b.said(), "on GPU-c") {
		t.Error("the log does not say where it was started")
	}

	b.Place("w", nil)
	b.stop()
	b.ready()
	if v, ok := b.env("DEVICES"); ok {
		t.Errorf("nobody placed the worker and it was given %q", v)
	}
}

func TestPlace_OfAForgottenInstanceIsForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.Place("w", []string{"GPU-a"})
	b.ready()
	b.stop()
	b.Forget("w")
	b.ready()
	if st := b.status(); st.Devices != nil {
		t.Errorf("the new instance of that name was put on %v", st.Devices)
	}
}

// said is the worker's log as text.
func (b *box) said() string {
	b.t.Helper()
	var text strings.Builder
	for _, line := range b.log().Tail(1000) {
		text.WriteString(line.Text + "\n")
	}
	return text.String()
}

// Memory of a device belongs to a worker when any process of its tree holds it.
func TestPIDs_AreTheWholeTree(t *testing.T) {
	t.Parallel()
	for _, strategy := range []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper} {
		t.Run(string(strategy), func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(_ *supervisor.Options, o *tree.Options) { o.Strategies = []tree.Strategy{strategy} })
			if pids := b.PIDs("w"); pids != nil {
				t.Errorf("a worker that never was has processes %v", pids)
			}
			b.worker("-fork", "2", "-setsid", "1")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := b.EnsureReady(ctx, "w"); err != nil {
				t.Skip(err) // the strategy cannot be had here
			}
			want := func() (pids []int) {
				for _, s := range b.survivors() {
					if s.Comm == "testworker" {
						pids = append(pids, s.PID)
					}
				}
				slices.Sort(pids)
				return pids
			}
			b.eventually("the tree", func() bool {
				pids := b.PIDs("w")
				return len(pids) == 4 && slices.Equal(pids, want()) && slices.Contains(pids, b.status().PID)
			})
			b.eventually("the tree in the status", func() bool { return slices.Equal(b.status().PIDs, want()) })

			// A child that comes later is seen at once, not with the next sample.
			if _, err := b.Execute(ctx, "w", call("c", "fork", 1), newSink()); err != nil {
				t.Fatal(err)
			}
			b.eventually("the new child", func() bool { return len(b.PIDs("w")) == 5 })
			b.stop()
			if pids := b.PIDs("w"); pids != nil {
				t.Errorf("a stopped worker has processes %v", pids)
			}
		})
	}
}

// A worker takes memory while it loads: it is known then already whose it is.
func TestPIDs_WhileLoading(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.worker("-stall")
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { started <- b.EnsureReady(ctx, "w") }()
	b.journal.wait(t, "starting>initializing")
	b.eventually("the process", func() bool {
		st := b.status()
		return st.PID != 0 && slices.Contains(b.PIDs("w"), st.PID) && slices.Contains(st.PIDs, st.PID) && st.RSS > 0
	})
	cancel()
	<-started
	b.stop()
}

func TestUsage_TheWorkersOwnAccountIsKeptWithItsTime(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.ready()
	before := time.Now()
	if _, err := b.Execute(t.Context(), "w", call("c", "usage", 5<<20), newSink()); err != nil {
		t.Fatal(err)
	}
	b.eventually("the account", func() bool { return b.status().Usage != nil })
	u := b.status().Usage
	if u.Devices["GPU-a"] != 5<<20 || u.Reported.Before(before) || u.Reported.After(time.Now()) {
		t.Errorf("got %+v", u)
	}
	b.stop()
	if b.status().Usage != nil {
		t.Error("a stopped worker still holds memory")
	}
}

// eventually polls what nothing tells us of.
func (b *box) eventually(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			b.t.Fatalf("never saw %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
