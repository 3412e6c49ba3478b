package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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

// smallDisk is a file system of its own in a private mount namespace, which
// lives as long as its holder. Programs join it through wrap.
type smallDisk struct {
	wrap []string
	path string // the mount point, as seen from outside
}

// newSmallDisk mounts a tmpfs at dir. Without the right to, the test is skipped.
func newSmallDisk(t *testing.T, dir string, mb int) smallDisk {
	t.Helper()
	unshare, enter := []string{"unshare", "--mount"}, []string{"nsenter", "--mount"}
	if os.Getuid() != 0 {
		unshare, enter = append(unshare, "--user", "--map-root-user"), append(enter, "--user", "--preserve-credentials")
	}
	script := fmt.Sprintf(`mount -t tmpfs -o size=%dm none "$1" && echo mounted && exec cat`, mb)
	cmd := exec.Command(unshare[0], append(unshare[1:], "--", "sh", "-c", script, "sh", dir)...)
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Skipf("a private file system cannot be had here: %v", err)
	}
	t.Cleanup(func() { _ = hold.Close(); _ = cmd.Wait() }) // the namespace goes with its last process
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Skipf("a private file system cannot be had here: %v %s", err, stderr.String())
	}
	return smallDisk{
		wrap: append(enter, "--target", strconv.Itoa(cmd.Process.Pid), "--"),
		path: fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, dir),
	}
}

// fill writes until nothing more fits, and returns what frees it again.
func (d smallDisk) fill(t *testing.T) (free func()) {
	t.Helper()
	path := filepath.Join(d.path, "fill")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<16); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			if len(block) == 1 {
				break
			}
			block = block[:max(len(block)/16, 1)]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A full disk: nothing that was acknowledged is lost, nothing is acknowledged
// that is not stored, what runs keeps its outcome until it can be written, reads
// go on, and when space returns so does everything else, by itself.
func TestFault_DiskFull(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "cjmd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // empty from outside, but for a few files
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	disk := newSmallDisk(t, state, 32)
	d := New(t, Options{Dir: dir, Wrap: disk.wrap})
	d.Launch(t)
	s := d.Session(t)

	accepted := []string{s.Completed(Op("echo"), nil).Id}
	gate := s.Gate()
	running := s.Submit(OpOf("labs", "hold", "gate", gate.Path))
	s.Begun(running.Id)
	accepted = append(accepted, running.Id)
	free := disk.fill(t)

	var refused []string
	for n := 0; len(refused) < 5; n++ {
		if n > 3000 {
			t.Fatal("the disk is full and submits are accepted for ever")
		}
		id := fmt.Sprintf("while-full-%d", n)
		job, err := client.Decode[wire.Job](s.API.PutJob(s.Ctx(), id, nil, OpOf("labs", "echo", "pad", strings.Repeat("x", 5000))))
		var p *client.ProblemError
		switch {
		case err == nil:
			accepted = append(accepted, job.Id)
		case errors.As(err, &p) && p.Status == http.StatusInsufficientStorage && p.Code == "store_full" && p.RetryAfter > 0:
			refused = append(refused, id)
		default:
			t.Fatalf("a submit on a full disk is answered with %v", err)
		}
	}
	t.Logf("%d jobs were accepted before the disk was full", len(accepted)-2)
	s.Get(accepted[0])
	if resp, err := s.API.Livez(s.Ctx()); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("on a full disk /livez says %v, %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	if text := readiness(t, s); !contains(text, "failing") || !contains(text, "the disk is full") {
		t.Errorf("on a full disk /readyz says %s", text)
	}
	gate.Open() // the outcome has to wait for the disk
	for _, id := range refused {
		Problem(t, 404, "job_not_found")(s.API.GetJob(s.Ctx(), id, nil))
	}

	free()
	deadline := time.Now().Add(40 * time.Second)
	for n := 0; ; n++ {
		job, err := client.Decode[wire.Job](s.API.PutJob(s.Ctx(), "after", nil, OpOf("labs", "echo")))
		if err == nil {
			accepted = append(accepted, job.Id)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("space is back and submits are still refused: %v", err)
		}
	}
	for _, id := range accepted {
		s.IsCompleted(s.Wait(id))
	}
	d.Kill(t)
	d.Launch(t)
	for _, id := range accepted {
		s.IsCompleted(s.Get(id))
		if n := d.RunsOf(t, id); n != 1 {
			t.Errorf("job %s ran %d times", id, n)
		}
	}
	for _, id := range refused {
		Problem(t, 404, "job_not_found")(s.API.GetJob(s.Ctx(), id, nil))
	}
	all := s.Journal(0, func(ev client.Event) bool {
		return ev.Kind == "daemon.started" && strings.Contains(string(ev.Data), fmt.Sprintf(`"pid":%d`, d.PID()))
	})
	AssertGapless(t, 1, all)
	if slices.Contains(Kinds(all), "stream.reset") {
		t.Error("the journal lost its beginning")
	}
}

func readiness(t *testing.T, s *Session) string {
	t.Helper()
	resp, err := s.API.Readyz(s.Ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
