package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestServe_AnswersAndLeavesNothing(t *testing.T) {
	t.Parallel()
	d := serve(t)
	d.log.wait(t, `"state":"fresh"`)
	for _, path := range []string{"/livez", "/readyz", "/v1/version", "/v1/queue"} {
		if code, body := d.do(t, "GET", path, ""); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	d.stop()
	code := <-d.code
	d.code <- code
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "state/run/cjmd.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// Names of metrics are for dashboards and alerts of others: they change on
// purpose or not at all.
func TestMetrics_Names(t *testing.T) {
	t.Parallel()
	d := serve(t)
	_, body := d.do(t, "GET", "/metrics", "")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (cjmd_\S+ \S+)$`).FindAllStringSubmatch(body, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	got := strings.Join(names, "\n") + "\n"
	golden := filepath.Join("testdata", "metrics.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s(go test ./cmd/cjmd -run Metrics -update)", got, want)
	}
	for _, kind := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, kind) {
			t.Errorf("no %s", kind)
		}
	}
}

func TestServe_SecondDaemonOnAStateDirectoryIsRefusedByName(t *testing.T) {
	t.Parallel()
	dir, env := home(t)
	serveIn(t, dir, env)
	code, _, stderr := once(t, env, "--state-dir", filepath.Join(dir, "state"), "--listen", "none")
	if want := fmt.Sprintf("process %d already uses it", os.Getpid()); code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestServe_SaysWhatItCannotHave(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() }) // after the parallel subtests
	for name, tc := range map[string]struct {
		args func(dir string) []string
		want string
	}{
		"state directory is a file": {func(dir string) []string { return []string{"--state-dir", filepath.Join(dir, "file")} }, "cannot make directory"},
		"socket is a file":          {func(dir string) []string { return []string{"--socket", filepath.Join(dir, "file")} }, "no socket"},
		"socket is another's":       {func(dir string) []string { return []string{"--socket", filepath.Join(dir, "live.sock")} }, "another program answers there"},
		"port is taken":             {func(string) []string { return []string{"--listen", taken.Addr().String()} }, "cannot listen on server.listen"},
		"nowhere to listen":         {func(string) []string { return []string{"--listen", "none", "--socket", "none"} }, "both none"},
		"unknown flag":              {func(string) []string { return []string{"--stat-dir", "x"} }, "unknown flag"},
		"unknown verb":              {func(string) []string { return []string{"sevre"} }, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, env := home(t)
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			live, err := net.Listen("unix", filepath.Join(dir, "live.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer live.Close()
			args := tc.args(dir)
			if !slices.Contains(args, "--listen") {
				args = append(args, "--listen", "none")
			}
			code, _, stderr := once(t, append(env, "CJMD_STATE_DIR="+filepath.Join(dir, "state")), args...)
			if code != 1 || !strings.Contains(stderr, tc.want) || !strings.HasPrefix(lastLine(stderr), "cjmd: ") {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
				t.Errorf("the file is gone: %q %v", b, err)
			}
		})
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// A socket file that a killed daemon left is no obstacle.
func TestServe_ReplacesAStaleSocket(t *testing.T) {
	t.Parallel()
	dir, env := home(t)
	run := filepath.Join(dir, "state/run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(run, "cjmd.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	d := serveIn(t, dir, env)
	if code, body := d.do(t, "GET", "/livez", ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	st, err := os.Stat(filepath.Join(run, "cjmd.sock"))
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

// One listener that died was not noticed until the other one ended.
func TestServe_ADeadListenerStopsTheDaemon(t *testing.T) {
	t.Parallel()
	d := assembled(t)
	ended := make(chan error, 1)
	go func() { ended <- d.run(t.Context(), make(chan os.Signal)) }()
	d.listeners.tcp[0].Close()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "http on 127.0.0.1") {
		t.Errorf("got %v", err)
	}
}

func TestServe_NoNewJobsWhileItStops(t *testing.T) {
	t.Parallel()
	d := assembled(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx, make(chan os.Signal)) }()
	d.closed.Store(true)
	if _, err := (intake{nil, &d.closed}).Retry(t.Context(), "x", ""); err == nil {
		t.Error("a retry was taken")
	}
	if _, err := (intake{nil, &d.closed}).Submit(t.Context(), nil); err == nil {
		t.Error("a job was taken")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestReadiness_SaysWhyNot(t *testing.T) {
	t.Parallel()
	d := assembled(t)
	defer d.close()
	why := strings.Join(d.notReady(t.Context()), "; ")
	if !strings.Contains(why, "starting") {
		t.Errorf("while starting: %s", why)
	}
	if err := d.store.Close(); err != nil {
		t.Fatal(err)
	}
	if now := strings.Join(d.notReady(t.Context()), "; "); !strings.Contains(now, "store") || now == why {
		t.Errorf("with a store that takes no writes: %s", now)
	}
}

// Not parallel: the signal goes to the whole process.
func TestServe_SIGHUPAppliesWhatItCan(t *testing.T) {
	dir, env := home(t)
	file := filepath.Join(dir, "cjmd.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	write("limits: {json_depth: 64}\n")
	d := serveIn(t, dir, env, "--config", file)
	deep := `{"plugin":"none","kwargs":{"a":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}}`
	if code, body := d.do(t, "POST", "/v1/jobs", deep); code == 400 {
		t.Fatalf("%d %s", code, body)
	}
	write("limits: {json_depth: 10}\nlog: {level: debug}\nworkers: {drain_grace: 1s}\n")
	hangUp()
	d.log.wait(t, `"applied":["log.level","limits.json_depth"],"need_restart":["workers.drain_grace"]`)
	if code, body := d.do(t, "POST", "/v1/jobs", deep); code != 400 {
		t.Errorf("%d %s", code, body)
	}
	write("limits: {json_dept: 10}\n")
	hangUp()
	d.log.wait(t, "the old configuration stays in force")
	if code, body := d.do(t, "POST", "/v1/jobs", deep); code != 400 {
		t.Errorf("after a bad file: %d %s", code, body)
	}
}

func TestStarting_SignalsAreNotLost(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 4)
	s := begin(t.Context(), signals)
	signals <- syscall.SIGHUP
	signals <- syscall.SIGTERM
	<-s.ctx.Done()
	if got := s.end(); got != syscall.SIGTERM {
		t.Errorf("got %v", got)
	}
	if got := <-signals; got != syscall.SIGHUP {
		t.Errorf("got %v", got)
	}
	if got := begin(t.Context(), signals).end(); got != nil {
		t.Errorf("got %v", got)
	}
}

// The socket of systemd is served as it is, and stays when the daemon ends: a
// restart refuses nobody.
func TestServe_SocketOfSystemd(t *testing.T) {
	t.Parallel()
	dir, env := home(t)
	path := filepath.Join(dir, "systemd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`,
		os.Args[0], "--state-dir", filepath.Join(dir, "state"), "--listen", "none")
	cmd.Env = append(env, asMain+"=1")
	cmd.ExtraFiles = []*os.File{f}
	log := newOutput()
	r, w := io.Pipe()
	cmd.Stderr = w
	go func() { _, _ = io.Copy(log, r) }()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.wait(t, `"msg":"serving"`)
	c := clientOf(t, path)
	defer c.CloseIdleConnections()
	if code, body := request(t, c, "GET", "/livez", ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v:\n%s", err, log)
	}
	w.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket of systemd is gone: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "state/run/cjmd.sock")); !os.IsNotExist(err) {
		t.Errorf("it made a socket of its own as well: %v", err)
	}
}
