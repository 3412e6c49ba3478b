package daemon

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func once(req wire.JobRequest) wire.JobRequest {
	req.MaxAttempts = 1
	return req
}

// The Python error of an import that fails is in the job's message, less than a
// second after the worker ended.
func TestFault_ImportErrorIsTold(t *testing.T) {
	s, _ := setup(t)
	job := s.Failed(once(Job("brokenimport", nil)), wire.JobErrorCategoryFatal)
	if !contains(job.Error.Message, "No module named 'a_module_that_nobody_has_installed'") {
		t.Errorf("the message is %q", job.Error.Message)
	}
	if !contains(job.Error.Traceback+strings.Join(job.Error.StderrTail, "\n"), "brokenimport.py") {
		t.Errorf("neither traceback nor last words name the file: %+v", job.Error)
	}
	var exited time.Time
	for _, ev := range s.Journal(0, func(ev client.Event) bool { return ev.Kind == "job.failed" && Data(t, ev)["job"] == job.Id }) {
		d := Data(t, ev)
		data, _ := d["data"].(map[string]any)
		if ev.Kind == "worker.state" && d["plugin"] == "brokenimport" && exited.IsZero() && data["from"] != "stopped" && data["to"] != "initializing" {
			exited = parseTime(t, d["at"])
		}
	}
	if took := job.FinishedAt.Sub(exited); exited.IsZero() || took > time.Second {
		t.Errorf("the failure was told %s after the worker's end (%s)", took, exited)
	}
	p := Problem(t, 502, "start_failed")(s.API.LoadPlugin(s.Ctx(), "brokenimport"))
	if !contains(p.Detail, "a_module_that_nobody_has_installed") {
		t.Errorf("a load says %q", p.Detail)
	}
}

func parseTime(t *testing.T, v any) time.Time {
	t.Helper()
	text, _ := v.(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// An import of 8 s is no fault while it stays within the stall timeout, and the
// daemon answers all the while.
func TestFault_ImportOf8s(t *testing.T) {
	s, lab := setup(t)
	job := s.Submit(Job("slowimport", nil))
	s.Completed(OpOf(lab, "echo"), nil)
	if j := s.Get(job.Id); Final(j) {
		t.Errorf("the job is %s", j.Status)
	}
	s.IsCompleted(s.Wait(job.Id))
	if w := s.Worker("slowimport"); w.LoadMs < 8000 {
		t.Errorf("the load took %d ms", w.LoadMs)
	}
}

// An initialize of 8 s outlives a stall timeout of 3 s, because it tells its
// progress, and can be watched.
func TestFault_InitializeOf8s(t *testing.T) {
	s, _ := setup(t)
	job := s.Submit(Job("slowinit", nil))
	s.Stream(JobPath(job.Id, "events")).Await(func(ev client.Event) bool {
		return ev.Kind == "job.phase" && Data(t, ev)["phase"] == "loading"
	})
	seen := ""
	for seen == "" && !Final(s.Get(job.Id)) {
		if w := s.Worker("slowinit"); w.State == wire.WorkerStateInitializing {
			seen = w.Message
		}
	}
	if !strings.HasPrefix(seen, "loading") {
		t.Errorf("the worker that loads says %q", seen)
	}
	s.IsCompleted(s.Wait(job.Id))
}

func TestFault_InitializeFails(t *testing.T) {
	s, lab := setup(t)
	broken := s.Instance(lab+"-b", map[string]any{"colour": "broken"})
	defer func() {
		resp, err := s.API.DeleteInstance(s.Ctx(), "lab", broken)
		if err != nil || resp.StatusCode != 204 {
			t.Errorf("delete is answered with %v, %v", resp, err)
			return
		}
		_ = resp.Body.Close()
	}()
	job := s.Failed(once(OpOf(broken, "echo")), wire.JobErrorCategoryFatal)
	if !contains(job.Error.Message, "the colour is broken") || s.D.RunsOf(t, job.Id) != 0 {
		t.Errorf("the message is %q", job.Error.Message)
	}
}

func TestFault_WorkerIsKilledMidJob(t *testing.T) {
	s, lab := setup(t)
	job := s.Failed(once(OpOf(lab, "die")), wire.JobErrorCategoryWorkerLost)
	if !contains(strings.ToLower(job.Error.Message), "killed") || !job.Error.Retriable {
		t.Errorf("the error is %+v", job.Error)
	}
	var run int
	job = s.Completed(OpOf(lab, "die_once"), &run)
	if run != 2 || job.Attempt != 2 {
		t.Errorf("the job completed in run %d, attempt %d", run, job.Attempt)
	}
	// From outside, too; the client that follows sees the attempt end and the next begin.
	gate := s.Gate()
	req := OpOf(lab, "count", "to", 4, "at", 3, "gate", gate.Path)
	req.Stream = true
	job = s.Submit(req)
	st := s.Stream(JobPath(job.Id, "events"))
	st.AwaitKind("chunk")
	if err := syscall.Kill(s.Worker(lab).Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gate.Open()
	st.AwaitKind("job.requeued")
	st.AwaitKind("job.started")
	st.AwaitKind("job.completed")
}

func TestFault_ExceptionsOfAllKinds(t *testing.T) {
	s, lab := setup(t)
	for _, sig := range []syscall.Signal{syscall.SIGSEGV, syscall.SIGABRT} {
		job := s.Failed(once(OpOf(lab, "die", "sig", int(sig))), wire.JobErrorCategoryWorkerLost)
		if job.Error.Message == "" {
			t.Errorf("the error of signal %d is %+v", sig, job.Error)
		}
	}
}

func TestFault_StreamCutMidFrame(t *testing.T) {
	s, lab := setup(t)
	req := once(OpOf(lab, "cut"))
	req.Stream = true
	job := s.Submit(req)
	events := s.Stream(JobPath(job.Id, "stream")).Rest()
	s.IsFailed(s.Get(job.Id), wire.JobErrorCategoryWorkerLost)
	if slices.Contains(Kinds(events), "chunk") {
		t.Error("half a chunk was delivered")
	}
	s.Completed(OpOf(lab, "echo"), nil)
}

func TestFault_GarbageFrame(t *testing.T) {
	s, lab := setup(t)
	job := s.Failed(once(OpOf(lab, "garbage")), wire.JobErrorCategoryWorkerLost)
	if !contains(job.Error.Message, "protocol") {
		t.Errorf("the message is %q", job.Error.Message)
	}
	var pid int
	s.Completed(OpOf(lab, "pid"), &pid)
}

// rssKB is the daemon's resident memory now, and the most it has been.
func rssKB(t *testing.T, pid int) (now, peak int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			now = n
		case "VmHWM:":
			peak = n
		}
	}
	return now, peak
}

// A worker that floods its stdout with 100 MB costs the daemon a bounded piece
// of memory and disk, and its job completes.
func TestFault_StdoutFloodOf100MB(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"workers.log_max_mb": 4, "workers.log_files": 2, "joblog.max_mb": 8}})
	s := d.Session(t)
	s.Completed(Op("echo"), nil)
	before, _ := rssKB(t, d.PID())
	for _, newlines := range []bool{true, false} {
		s.Completed(Op("flood", "size", 100_000_000, "newlines", newlines), nil)
	}
	_, peak := rssKB(t, d.PID())
	t.Logf("resident memory: %d MB before, %d MB at most", before/1024, peak/1024)
	if grown := peak - before; grown > 100<<10 {
		t.Errorf("the daemon grew by %d MB", grown/1024)
	}
	if n := treeBytes(t, d.State); n > 64<<20 {
		t.Errorf("%d MB of files are left of it", n>>20)
	}
	s.Completed(Op("echo"), nil)
}

func treeBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	for _, path := range files(t, dir) {
		if info, err := os.Stat(path); err == nil {
			n += info.Size()
		}
	}
	return n
}

func TestFault_DescendantsOfAnUnloadedWorker(t *testing.T) {
	s, lab := setup(t)
	var pids []int
	s.Completed(OpOf(lab, "descendants", "count", 5), &pids)
	for _, pid := range pids {
		if !Alive(pid) {
			t.Fatalf("descendant %d does not live", pid)
		}
	}
	Must[wire.Plugin](t)(s.API.UnloadPlugin(s.Ctx(), lab))
	for _, pid := range pids {
		if Alive(pid) {
			t.Errorf("descendant %d outlives its worker", pid)
		}
	}
}

func TestWorkers_TellWhatIsInForce(t *testing.T) {
	s, lab := setup(t)
	Problem(t, 404, "worker_not_found")(s.API.GetWorker(s.Ctx(), "nobody"))
	s.Completed(OpOf(lab, "echo"), nil)
	w := s.Worker(lab)
	if w.Plugin != "lab" || w.State != wire.WorkerStateReady || w.Generation != 1 || w.Restarts != 0 || !strings.Contains(w.Runtime, "Python") ||
		!slices.Contains(w.Capabilities, "stream") || w.RssMb <= 0 || w.LoadMs <= 0 {
		t.Errorf("the worker is %+v", w)
	}
	if len(w.Isolation) == 0 {
		t.Fatal("no isolation is reported")
	}
	if i := slices.IndexFunc(w.Isolation, func(f wire.IsolationFact) bool { return f.InForce && f.VerifiedBy != "" }); i < 0 {
		t.Errorf("nothing is verified: %+v", w.Isolation)
	}
	s.Run(once(OpOf(lab, "die")))
	if w := s.Worker(lab); w.LastExit == "" {
		t.Errorf("after a crash the worker is %+v", w)
	}
	s.Completed(OpOf(lab, "echo"), nil)
	if w := s.Worker(lab); w.Generation != 2 {
		t.Errorf("after a crash the worker is %+v", w)
	}
}
