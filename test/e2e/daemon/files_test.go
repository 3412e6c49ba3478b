package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/cjmd/cjmd/internal/api/wire"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func hold(r *wire.JobRequest) { r.Hold = true }

func filesOf(t *testing.T, s *Session, id string) wire.JobFiles {
	t.Helper()
	return Must[wire.JobFiles](t)(s.API.ListJobFiles(s.Ctx(), id, nil))
}

func put(t *testing.T, s *Session, id, name, body string) wire.JobFile {
	t.Helper()
	return Must[wire.JobFile](t)(s.API.PutJobFileWithBody(s.Ctx(), id, name, nil, "application/octet-stream", strings.NewReader(body)))
}

func names(list wire.JobFiles) string {
	var out []string
	for _, f := range list.Files {
		out = append(out, f.Name)
	}
	return strings.Join(out, " ")
}

// watcher tells what happens in a directory.
type watcher struct {
	t *testing.T
	w *fsnotify.Watcher
}

func watch(t *testing.T, dir string) watcher {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	return watcher{t, w}
}

// await returns after the next such event, of this path unless that is "".
func (w watcher) await(op fsnotify.Op, path string) {
	w.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case ev := <-w.w.Events:
			if ev.Has(op) && (path == "" || ev.Name == path) {
				return
			}
		case err := <-w.w.Errors:
			w.t.Fatal(err)
		case <-timeout:
			w.t.Fatalf("there was no %s of %s", op, path)
		}
	}
}

// From upload to download with a real worker, which plants links: nothing of them
// is followed, not for reading, not for writing, and not when the job goes.
func TestFiles_AWorkerThatPlantsLinks(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	req := OpOf(lab, "leave", "gate", gate.Path)
	hold(&req)
	job := s.Submit(req)
	put(t, s, job.Id, "in.txt", "given")
	Must[wire.Job](t)(s.API.ReleaseJob(s.Ctx(), job.Id))
	s.Told(job.Id, "left")
	if list := filesOf(t, s, job.Id); list.Unlisted < 4 || names(list) != "in.txt out.txt" || list.Files[1].Sha256 != "" {
		t.Errorf("while it runs, the files are %+v", list)
	}
	Problem(t, 409, "state_conflict")(s.API.PutJobFileWithBody(s.Ctx(), job.Id, "link", nil, "text/plain", strings.NewReader("x")))
	gate.Open()
	s.IsCompleted(s.Wait(job.Id))
	var result struct {
		Path, Mode string
		Found      map[string]string
	}
	s.Result(job.Id, &result)
	list := filesOf(t, s, job.Id)
	if result.Mode != "0o700" || result.Found["in.txt"] != "given" || result.Path != filepath.Join(list.Dir, "out.txt") {
		t.Errorf("the worker saw %+v, the directory is %s", result, list.Dir)
	}
	for _, name := range []string{"link", "etc/passwd", "others", "fifo", "locked", "locked/x", "others/" + filepath.Base(list.Dir) + "/out.txt"} {
		Problem(t, 404, "file_not_found")(s.API.GetJobFile(s.Ctx(), job.Id, name))
	}
	if got := s.Text(list.Files[1].Url); got != "made" {
		t.Errorf("out.txt is %q", got)
	}
	if list.Files[1].Sha256 == "" {
		t.Error("out.txt has no checksum")
	}
}

func TestFiles_ReferencesToOtherJobs(t *testing.T) {
	s, lab := setup(t)
	first := s.Completed(OpOf(lab, "leave"), nil)
	ref := func(kwargs map[string]any) wire.JobRequest {
		r := Job(lab, kwargs)
		r.DependsOn = []string{first.Id}
		return r
	}
	var echo struct{ Kwargs map[string]any }
	s.Completed(ref(map[string]any{"op": "echo",
		"file":    map[string]any{"$file": "out.txt", "job": first.Id},
		"path":    map[string]any{"$result": first.Id, "path": "/path"},
		"literal": map[string]any{"$literal": map[string]any{"$result": "x"}}}), &echo)
	if echo.Kwargs["file"] != echo.Kwargs["path"] || !strings.HasSuffix(fmt.Sprint(echo.Kwargs["file"]), "/out.txt") {
		t.Errorf("the plugin got %v", echo.Kwargs)
	}
	if m, _ := echo.Kwargs["literal"].(map[string]any); m["$result"] != "x" {
		t.Errorf("the literal is %v", echo.Kwargs["literal"])
	}
	for path, want := range map[string]map[string]any{
		"no member":                {"$result": first.Id, "path": "/none"},
		"nothing below":            {"$result": first.Id, "path": "/path/0"},
		`has no file \"none\"`:     {"$file": "none", "job": first.Id},
		`has no file \"link\"`:     {"$file": "link", "job": first.Id},
		`the job has no file \"x"`: {"$file": "x"},
	} {
		job := s.Failed(ref(map[string]any{"op": "echo", "x": want}), wire.JobErrorCategoryUserInput)
		if path = strings.ReplaceAll(path, `\`, ""); !strings.Contains(job.Error.Message, path) {
			t.Errorf("%v: the message is %q", want, job.Error.Message)
		}
	}
}

// A result that is backed by a file becomes a path in the job's directory, where
// it can be fetched, and the next job can be given it.
func TestFiles_AResultBackedByAFile(t *testing.T) {
	s, lab := setup(t)
	var result struct{ Audio string }
	first := s.Completed(OpOf(lab, "file_backed", "text", "sound"), &result)
	list := filesOf(t, s, first.Id)
	if len(list.Files) != 1 || result.Audio != filepath.Join(list.Dir, list.Files[0].Name) {
		t.Fatalf("the result is %s, the files are %+v", result.Audio, list)
	}
	if got := s.Text(list.Files[0].Url); got != "sound" {
		t.Errorf("the file holds %q", got)
	}
	next := Job(lab, map[string]any{"op": "echo", "audio": map[string]any{"$result": first.Id, "path": "/audio"}})
	next.DependsOn = []string{first.Id}
	var echo struct{ Kwargs struct{ Audio string } }
	s.Completed(next, &echo)
	if echo.Kwargs.Audio != result.Audio {
		t.Errorf("the next job got %q", echo.Kwargs.Audio)
	}
}

func TestBadInput_Dependencies(t *testing.T) {
	s, lab := setup(t)
	request := func(deps ...string) wire.JobRequest {
		r := OpOf(lab, "echo")
		r.DependsOn = deps
		return r
	}
	p := Problem(t, 422, "invalid_body")(s.API.SubmitJob(s.Ctx(), nil, request("none")))
	pointsAt(t, p, "/depends_on/0")
	p = Problem(t, 422, "invalid_body")(s.API.PutJob(s.Ctx(), "itself-"+lab, nil, request("itself-"+lab)))
	pointsAt(t, p, "/depends_on/0")
	failed := s.Failed(OpOf(lab, "fail"), wire.JobErrorCategoryFatal)
	p = Problem(t, 422, "invalid_body")(s.API.SubmitJob(s.Ctx(), nil, request(failed.Id, failed.Id)))
	pointsAt(t, p, "/depends_on/1")
	job := s.Run(request(failed.Id))
	if job.Status != wire.JobStatusCancelled || !strings.Contains(job.CancelReason, failed.Id) {
		t.Errorf("a job that depends on a failed one is %s: %s", job.Status, job.CancelReason)
	}
	anyway := request(failed.Id)
	anyway.OnDependencyFailure = wire.JobRequestOnDependencyFailureRun
	s.IsCompleted(s.Run(anyway))
	waits := request(s.Submit(OpOf(lab, "hold", "gate", "/nonexistent")).Id)
	blocked := s.Submit(waits)
	got := s.Get(blocked.Id)
	if got.Block == nil || got.Block.Sentence != "waits for job "+waits.DependsOn[0] {
		t.Errorf("the block is %+v", got.Block)
	}
	x := Must[wire.Explanation](t)(s.API.ExplainJob(s.Ctx(), blocked.Id))
	if !strings.Contains(x.Sentence, waits.DependsOn[0]) {
		t.Errorf("the explanation is %q", x.Sentence)
	}
	s.Cancel(waits.DependsOn[0])
	if j := s.Wait(blocked.Id); j.Status != wire.JobStatusCancelled {
		t.Errorf("the dependent is %s", j.Status)
	}
}

// kill -9 in the middle of an upload and of a submission with files: what was
// acknowledged is there, of the rest nothing.
func TestFiles_KillAmidUploads(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	req := Op("leave")
	hold(&req)
	job := s.Submit(req)
	put(t, s, job.Id, "sub/done.txt", "all of it")
	dir := filesOf(t, s, job.Id).Dir
	root := filepath.Dir(dir)
	begun := watch(t, filepath.Join(root, ".uploads"))
	token := d.AdminToken(t)
	half := func(head string) {
		c, err := net.Dial("tcp", d.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, err = io.WriteString(c, strings.Replace(head, "\r\n", "\r\nHost: localhost\r\nAuthorization: Bearer "+token+"\r\nContent-Length: 100000\r\n", 1))
		if err != nil {
			t.Fatal(err)
		}
	}
	half("PUT " + JobPath(job.Id, "files", "half.txt") + " HTTP/1.1\r\n\r\nhalf of it")
	half("POST /v1/jobs HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"whole.txt\"\r\n\r\nwhole" +
		"\r\n--b\r\nContent-Disposition: form-data; name=\"half.txt\"\r\n\r\n" + strings.Repeat("x", 9000))
	begun.await(fsnotify.Create, "")
	begun.await(fsnotify.Create, "")
	d.Kill(t)
	d.Launch(t)
	s = d.Session(t)
	list := filesOf(t, s, job.Id)
	if names(list) != "sub/done.txt" || list.Files[0].Sha256 == "" {
		t.Errorf("the files are %+v", list.Files)
	}
	for _, pattern := range []string{".uploads/*", ".marks/*"} {
		if left, _ := filepath.Glob(filepath.Join(root, pattern)); len(left) != 0 {
			t.Errorf("%v is left", left)
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(root, "[0-9a-f]*"))
	if len(dirs) != 1 {
		t.Errorf("the directories are %v", dirs)
	}
	if n := len(Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), nil)).Jobs); n != 1 {
		t.Errorf("there are %d jobs", n)
	}
}

// Retention takes the directory along, links, locked parts and all, and leaves
// alone what a waiting job needs.
func TestFiles_GoWithTheJob(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"jobs": map[string]any{"retention": map[string]any{"count": 1, "age": "1ms"}}}})
	s := d.Session(t)
	first := s.Completed(Op("leave"), nil)
	dir := filesOf(t, s, first.Id).Dir
	needs := Job("lab", map[string]any{"op": "echo", "path": map[string]any{"$file": "out.txt", "job": first.Id}})
	needs.DependsOn, needs.Hold = []string{first.Id}, true
	waiting := s.Submit(needs)
	for range 3 {
		s.Completed(Op("echo"), nil)
	}
	d.Restart(t) // retention is looked at when the daemon starts
	s = d.Session(t)
	if names(filesOf(t, s, first.Id)) != "out.txt" {
		t.Error("what a waiting job needs is gone")
	}
	Must[wire.Job](t)(s.API.ReleaseJob(s.Ctx(), waiting.Id))
	s.IsCompleted(s.Wait(waiting.Id))
	s.Completed(Op("echo"), nil)
	gone := watch(t, filepath.Dir(dir))
	d.Restart(t)
	s = d.Session(t)
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		gone.await(fsnotify.Remove, dir)
	}
	Problem(t, 404, "job_not_found")(s.API.ListJobFiles(s.Ctx(), first.Id, nil))
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

func TestFiles_Quotas(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"jobs": map[string]any{"files_mb": 1, "files_total_mb": 2}}})
	s := d.Session(t)
	req := Op("echo")
	hold(&req)
	part := strings.Repeat("x", 700<<10)
	upload := func(id, name string) (*http.Response, error) {
		return s.API.PutJobFileWithBody(s.Ctx(), id, name, nil, "application/octet-stream", strings.NewReader(part))
	}
	var jobs []string
	for range 3 {
		jobs = append(jobs, s.Submit(req).Id)
	}
	Must[wire.JobFile](t)(upload(jobs[0], "a"))
	Problem(t, 413, "file_quota")(upload(jobs[0], "b"))
	Must[wire.JobFile](t)(upload(jobs[1], "a"))
	Problem(t, 507, "files_full")(upload(jobs[2], "a"))
	// Also when the client does not say how much it is.
	body := struct{ io.Reader }{strings.NewReader(part)}
	Problem(t, 507, "files_full")(s.API.PutJobFileWithBody(s.Ctx(), jobs[2], "a", nil, "application/octet-stream", body))
	d.Restart(t) // what is there is counted anew
	s = d.Session(t)
	Problem(t, 507, "files_full")(upload(jobs[2], "a"))
	s.Cancel(jobs[0])
	if resp, err := s.API.DeleteJobFile(s.Ctx(), jobs[0], "a", nil); err != nil || resp.StatusCode != 204 {
		t.Fatalf("the file of a cancelled job cannot be removed: %v %v", resp, err)
	}
	Must[wire.JobFile](t)(upload(jobs[2], "a"))
}
