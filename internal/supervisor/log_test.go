package supervisor_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
)

func (b *box) log() supervisor.LogSource {
	b.t.Helper()
	l, ok := b.Logs("w")
	if !ok {
		b.t.Fatal("no log")
	}
	return l
}

// line waits for a line of the log that ok accepts.
func (b *box) line(ok func(supervisor.LogLine) bool) supervisor.LogLine {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	var after uint64
	for {
		lines, _, err := b.log().Next(ctx, after)
		if err != nil {
			b.t.Fatalf("never saw the line: %v; have %+v", err, b.log().Tail(20))
		}
		for _, l := range lines {
			if ok(l) {
				return l
			}
		}
		after = lines[len(lines)-1].Seq
	}
}

func TestLogs_StreamsRecordsAndOurOwnLines(t *testing.T) {
	b := setup(t, nil)
	b.worker("-stderr", "progress 1\rprogress 2")
	b.ready()
	s := newSink()
	if _, err := b.Execute(t.Context(), "w", call("job-7", "log"), s); err != nil {
		t.Fatal(err)
	}
	if len(s.logs) != 1 {
		t.Errorf("the sink got %v", s.logs)
	}
	b.line(func(l supervisor.LogLine) bool { return l.Stream == "stderr" && l.Text == "progress 2" })
	b.line(func(l supervisor.LogLine) bool { return l.Stream == "cjmd" && strings.HasPrefix(l.Text, "started pid") })
	got := b.line(func(l supervisor.LogLine) bool { return l.Call == "job-7" && l.Text == "world" })
	if got.Level != "warning" || got.Stream != "log" {
		t.Errorf("got %+v", got)
	}
	if lines := b.log().Tail(1); len(lines) != 1 {
		t.Errorf("tail %v", lines)
	}
}

func TestLogs_SurviveTheDaemon(t *testing.T) {
	root := t.TempDir()
	for i, want := range []bool{false, true} {
		t.Run("", func(t *testing.T) {
			b := setup(t, func(o *supervisor.Options, _ *tree.Options) { o.LogRoot = root })
			found := false
			for _, l := range b.log().Tail(100) {
				found = found || l.Text == "hello from before"
			}
			if found != want {
				t.Errorf("daemon %d: found %v", i, found)
			}
			b.worker("-stderr", "hello from before")
			b.ready()
			b.line(func(l supervisor.LogLine) bool { return l.Text == "hello from before" })
		})
	}
}

func TestLogs_FollowEndsWithTheSupervisor(t *testing.T) {
	var l supervisor.LogSource
	t.Run("life", func(t *testing.T) {
		b := setup(t, nil)
		b.ready()
		l = b.log()
	})
	var after uint64
	for {
		lines, _, err := l.Next(t.Context(), after)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		after = lines[len(lines)-1].Seq
	}
}

func TestLogs_FloodIsBoundedAndTheCallSucceeds(t *testing.T) {
	b := setup(t, func(o *supervisor.Options, _ *tree.Options) {
		o.LogLimits = supervisor.LogLimits{FileBytes: 1 << 20, Files: 2}
	})
	b.ready()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	if _, err := b.Execute(t.Context(), "w", call("1", "flood", 100), newSink()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("100 MiB in %v (%.0f MiB/s), heap grew by %d KiB", took, 100/took.Seconds(), grown>>10)
	if grown > 16<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if err := b.Stop(t.Context(), "w", "test"); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(b.logs, "w", "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("files %v, %v", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 1<<20+64<<10 {
			t.Errorf("%s: %v, %v", f, st.Size(), err)
		}
	}
}

func TestLogs_LongLineIsCut(t *testing.T) {
	b := setup(t, nil)
	b.ready()
	if _, err := b.Execute(t.Context(), "w", call("1", "long-line", 200), newSink()); err != nil {
		t.Fatal(err)
	}
	b.line(func(l supervisor.LogLine) bool { return l.Stream == "stdout" && len(l.Text) == 200<<10%(64<<10) })
	for _, l := range b.log().Tail(100) {
		if len(l.Text) > 64<<10 {
			t.Errorf("a line of %d bytes", len(l.Text))
		}
	}
}

func TestLogs_FullDiskNeverReachesTheCall(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	b := setup(t, func(o *supervisor.Options, _ *tree.Options) { o.LogRoot = root })
	b.ready()
	for i := range 3 {
		if _, err := b.Execute(t.Context(), "w", call("1", "flood", 4), newSink()); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	b.line(func(l supervisor.LogLine) bool { return l.Stream == "stdout" }) // the ring goes on
	if err := b.Stop(t.Context(), "w", "test"); err != nil {
		t.Fatal(err)
	}
}

func TestLogs_QuotaOfAllWorkersRemovesTheOldestRotatedFile(t *testing.T) {
	b := setup(t, func(o *supervisor.Options, _ *tree.Options) {
		o.LogLimits = supervisor.LogLimits{FileBytes: 256 << 10, Files: 8, TotalBytes: 1 << 20}
	})
	for _, name := range []string{"a", "b"} {
		if err := b.EnsureReady(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Execute(t.Context(), name, call("1", "flood", 2), newSink()); err != nil {
			t.Fatal(err)
		}
		if err := b.Stop(t.Context(), name, "test"); err != nil {
			t.Fatal(err)
		}
	}
	var sum int64
	files, err := filepath.Glob(filepath.Join(b.logs, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			sum += st.Size()
		}
	}
	if sum > 1<<20+512<<10 {
		t.Errorf("%d KiB in %v", sum>>10, files)
	}
}
