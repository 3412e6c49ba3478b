//go:build systemd

package systemd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// story is what the steps share: the machine, and every job that the daemon has
// acknowledged.
type story struct {
	*machine
	mu       sync.Mutex
	promised []string // guarded by mu
}

// submit hands in a job that is acknowledged, and remembers it.
func (s *story) submit(id, plugin string, kwargs map[string]any) {
	s.t.Helper()
	body := map[string]any{"plugin": plugin, "kwargs": kwargs, "max_attempts": 10}
	code, v := s.insist("PUT", "/v1/jobs/"+id, body)
	if code != 202 && code != 200 {
		s.t.Fatalf("submit of %s: %d %v", id, code, v)
	}
	s.promise(id)
}

func (s *story) promise(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised = append(s.promised, id)
}

// final waits for the end of a job.
func (s *story) final(id string) map[string]any {
	s.t.Helper()
	for {
		code, v := s.insist("GET", "/v1/jobs/"+id+"?wait=30s", nil)
		if code != 200 {
			s.t.Fatalf("job %s: %d %v", id, code, v)
		}
		switch v["status"] {
		case "completed", "failed", "cancelled":
			return v
		}
		if s.t.Context().Err() != nil {
			s.t.Fatal("the test is over")
		}
	}
}

// running waits until a job executes: its log says so.
func (s *story) running(id string) {
	s.t.Helper()
	for {
		_, v := s.insist("GET", "/v1/jobs/"+id, nil)
		if v["phase"] == "executing" {
			return
		}
		if v["status"] != "pending" && v["status"] != "running" {
			s.t.Fatalf("job %s is %v: %v", id, v["status"], v["error"])
		}
	}
}

// kept checks that nothing promised is lost: every job is there and completes.
func (s *story) kept() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.promised {
		if v := s.final(id); v["status"] != "completed" {
			s.t.Errorf("job %s: %v %v", id, v["status"], v["error"])
		}
	}
	s.promised = nil
}

// TestService is the life of the service from the installation of its package
// to its removal. The steps build on each other.
func TestService(t *testing.T) {
	s := &story{machine: boot(t)}
	for _, step := range []struct {
		name string
		run  func(*story)
	}{
		{"the package installs and starts it", install},
		{"its units are right and hardened", units},
		{"a job runs as an ordinary user", aJob},
		{"a job runs in the strongest tier", sandboxedJob},
		{"a daemon that is killed comes back and keeps its jobs", killed},
		{"a daemon that hangs is restarted by the watchdog", hangs},
		{"a restart under load refuses nobody", underLoad},
		{"a reload is answered and changes what it can", reload},
		{"a stop leaves nothing of a worker that will not go", stubborn},
		{"an upgrade keeps the configuration and the jobs", upgrade},
		{"the package leaves nothing but the owner's data", remove},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			step.run(s)
		}) {
			t.Fatal("the next steps build on this one")
		}
	}
}

func install(s *story) {
	s.run("dpkg", "-i", os.Getenv("CJMD_DEB"))
	if state := s.show("ActiveState"); state != "active" {
		s.t.Fatalf("the service is %s", state)
	}
	for _, plugin := range []string{"../../examples/plugins/sleeper", "../../examples/plugins/textstats", "plugins/stubborn"} {
		files, err := filepath.Glob(plugin + "/*.*")
		if err != nil || len(files) == 0 {
			s.t.Fatalf("%s: %v", plugin, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				s.t.Fatal(err)
			}
			s.write(filepath.Join("etc/cjmd/plugins", filepath.Base(plugin), filepath.Base(f)), string(text))
		}
	}
	s.insist("POST", "/v1/plugins/discover", nil)
	if page := s.run("sh", "-c", "gzip -dc /usr/share/man/man1/cjm-ctl-run.1.gz"); !strings.Contains(page, "Submit a job") {
		s.t.Errorf("the manual page of cjm-ctl run: %s", page)
	}
	if out := s.run("cjm-ctl", "status"); !strings.Contains(out, "ok") {
		s.t.Errorf("cjm-ctl status: %s", out)
	}
}

func units(s *story) {
	if out := s.run("systemd-analyze", "verify", "/usr/lib/systemd/system/cjmd.service", "/usr/lib/systemd/system/cjmd.socket"); out != "" {
		s.t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := s.run("env", "XDG_RUNTIME_DIR=/run", "HOME=/root", "systemd-analyze", "verify", "--user", "/usr/lib/systemd/user/cjmd.service", "/usr/lib/systemd/user/cjmd.socket"); out != "" {
		s.t.Errorf("systemd-analyze verify --user: %s", out)
	}
	// Exposure in tenths; what is left open is what the unit file gives reasons for.
	out := s.run("systemd-analyze", "security", "--threshold=45", "--no-pager", "cjmd.service")
	lines := strings.Split(out, "\n")
	s.t.Log(lines[len(lines)-1])
}

func aJob(s *story) {
	s.submit("words", "textstats", map[string]any{"text": "to be or not to be"})
	s.kept()
	_, workers := s.insist("GET", "/v1/workers", nil)
	if s.run("stat", "-c", "%U", "/var/lib/cjmd/cjmd.db") != "cjmd" {
		s.t.Error("the database is not the service user's")
	}
	uid := s.run("id", "-u", "cjmd")
	for _, pid := range strings.Fields(s.run("pgrep", "-f", "cjmworker")) {
		if owner := s.run("stat", "-c", "%u", "/proc/"+pid); owner == "0" || owner != uid {
			s.t.Errorf("worker %s runs as %s, the service's user is %s: %v", pid, owner, uid, workers)
		}
	}
}

func sandboxedJob(s *story) {
	code, v := s.insist("PATCH", "/v1/plugins/textstats/instances/textstats", map[string]any{"isolation": map[string]any{"tier": "3", "require": []string{"fs"}}})
	if code != 200 {
		s.t.Fatalf("%d %v", code, v)
	}
	if code, v := s.insist("POST", "/v1/plugins/textstats/reload", nil); code != 200 {
		s.t.Fatalf("%d %v", code, v)
	}
	s.submit("boxed", "textstats", map[string]any{"text": "held fast"})
	s.kept()
	if _, w := s.insist("GET", "/v1/workers/textstats", nil); w["tier"] != "sandboxed" {
		s.t.Errorf("the worker runs in tier %v", w["tier"])
	}
}

func killed(s *story) {
	before := s.number("NRestarts")
	for i := range 5 {
		s.submit(fmt.Sprintf("killed-%d", i), "sleeper", map[string]any{"seconds": 1, "children": 2})
	}
	s.running("killed-0")
	old := s.show("MainPID")
	s.run("kill", "-9", old)
	s.kept()
	if now := s.number("NRestarts"); now != before+1 {
		s.t.Errorf("%d restarts, want %d", now, before+1)
	}
	if s.show("MainPID") == old {
		s.t.Error("the daemon is still the same process")
	}
}

func hangs(s *story) {
	s.write("etc/systemd/system/cjmd.service.d/watchdog.conf", "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=2s\n")
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", "cjmd.service")
	before := s.number("NRestarts")
	s.submit("hangs", "sleeper", map[string]any{"seconds": 1})
	s.running("hangs")
	s.run("kill", "-STOP", s.show("MainPID"))
	s.kept() // hangs until the watchdog has done its work
	if now := s.number("NRestarts"); now != before+1 {
		s.t.Errorf("%d restarts, want %d", now, before+1)
	}
	if out := s.run("journalctl", "-u", "cjmd", "--no-pager", "-o", "cat"); !strings.Contains(out, "Watchdog timeout") {
		s.t.Error("the journal has no word of the watchdog")
	}
	if err := os.Remove(s.path("etc/systemd/system/cjmd.service.d/watchdog.conf")); err != nil {
		s.t.Fatal(err)
	}
	s.run("systemctl", "daemon-reload")
}

// underLoad submits without a pause while the daemon is restarted twice.
func underLoad(s *story) {
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var counts struct {
		sync.Mutex
		accepted, unavailable, broken int
		wrong                         []error
	}
	for c := range 4 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("load-%d-%d", c, i)
				code, v, err := s.ask("PUT", "/v1/jobs/"+id, map[string]any{"plugin": "textstats", "kwargs": map[string]any{"text": "a b"}, "max_attempts": 10})
				counts.Lock()
				var r refused
				switch {
				case errors.As(err, &r):
					counts.wrong = append(counts.wrong, err)
				case err != nil:
					counts.broken++ // whether it was taken is asked by the same request again
					i--
				case code == 200 || code == 202:
					counts.accepted++
					s.promise(id)
				case code == 503:
					counts.unavailable++
				default:
					counts.wrong = append(counts.wrong, fmt.Errorf("%s: %d %v", id, code, v))
				}
				counts.Unlock()
			}
		})
	}
	for range 2 {
		s.run("systemctl", "restart", "cjmd.service")
	}
	close(stop)
	clients.Wait()
	s.t.Logf("%d accepted, %d told to come back, %d connections cut", counts.accepted, counts.unavailable, counts.broken)
	if counts.accepted == 0 || len(counts.wrong) > 0 {
		s.t.Fatalf("%d accepted; %v", counts.accepted, counts.wrong)
	}
	s.kept()
}

func reload(s *story) {
	config := "etc/cjmd/cjmd.yaml"
	old, err := os.ReadFile(s.path(config))
	if err != nil {
		s.t.Fatal(err)
	}
	pid := s.show("MainPID")
	s.write(config, strings.Replace(string(old), "policy: reserve", "policy: permissive", 1))
	_, before := s.insist("GET", "/v1/scheduler", nil)
	s.run("systemctl", "reload", "cjmd.service")
	// The signal is on its way when reload returns; the daemon's journal has the end.
	s.journal("configuration reloaded")
	_, after := s.insist("GET", "/v1/scheduler", nil)
	if before["policy"] != "reserve" || after["policy"] != "permissive" {
		s.t.Errorf("policy %v, then %v", before["policy"], after["policy"])
	}
	if s.show("MainPID") != pid {
		s.t.Error("a reload restarted the daemon")
	}
}

// journal waits for a line of the daemon's log.
func (s *story) journal(text string) {
	s.t.Helper()
	s.run("timeout", "60", "sh", "-c", `journalctl -u cjmd -f -n 50 -o cat | grep -q -m 1 -- "$0"`, text)
}

func stubborn(s *story) {
	s.write("etc/systemd/system/cjmd.service.d/drain.conf", "[Service]\nEnvironment=CJMD_WORKERS_DRAIN_GRACE=1s\n")
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", "cjmd.service")
	s.submit("stubborn", "stubborn", map[string]any{"seconds": 20})
	s.running("stubborn")
	s.run("systemctl", "stop", "cjmd.service")
	if result := s.show("Result"); result != "success" {
		s.t.Errorf("the stop ended with %q", result)
	}
	if left := s.left(); left != "" {
		s.t.Fatalf("left behind:\n%s", left)
	}
	// The socket still listens, and whoever comes starts the service again.
	_, v := s.insist("GET", "/v1/jobs/stubborn", nil)
	if v["status"] == "completed" || v["status"] == "failed" {
		s.t.Errorf("the interrupted job is %v", v["status"])
	}
	s.kept()
}

func upgrade(s *story) {
	s.submit("upgrade", "sleeper", map[string]any{"seconds": 2})
	s.running("upgrade")
	pid := s.show("MainPID")
	s.run("dpkg", "-i", "--force-confold", os.Getenv("CJMD_DEB"))
	if s.show("ActiveState") != "active" || s.show("MainPID") == pid {
		s.t.Error("the service was not restarted")
	}
	config, err := os.ReadFile(s.path("etc/cjmd/cjmd.yaml"))
	if err != nil || !strings.Contains(string(config), "policy: permissive") {
		s.t.Errorf("the owner's configuration is gone: %v", err)
	}
	s.kept()
}

func remove(s *story) {
	s.submit("last", "stubborn", map[string]any{"seconds": 0})
	s.kept()
	s.run("dpkg", "-r", "cjmd")
	if left := s.left(); left != "" {
		s.t.Errorf("left behind:\n%s", left)
	}
	s.run("dpkg", "-P", "cjmd")
	for _, gone := range []string{"etc/cjmd/cjmd.yaml", "usr/bin/cjmd", "var/cache/cjmd", "var/log/cjmd", "run/cjmd"} {
		if _, err := os.Lstat(s.path(gone)); !errors.Is(err, os.ErrNotExist) {
			s.t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if _, err := os.Stat(s.path("var/lib/cjmd/cjmd.db")); err != nil {
		s.t.Errorf("the owner's data: %v", err)
	}
}
