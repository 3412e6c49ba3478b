package daemontest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/internal/client"
)

// patience bounds every wait for the daemon: what takes longer is a failure,
// also on a slow machine under the race detector.
const patience = 60 * time.Second

// Options of a Daemon. Zero values mean a daemon that is quick to test.
type Options struct {
	// Config holds keys of the configuration ("jobs.retention.count") beside and
	// over those that every test daemon has.
	Config map[string]any
	// Env is added to the daemon's environment.
	Env []string
	// Dir is where everything of the daemon is; "" makes one and removes it.
	Dir string
	// Wrap is put before the daemon's command line; it must end by executing it.
	Wrap []string
}

// Daemon is a cjmd process and what belongs to it.
type Daemon struct {
	Dir    string // everything of it is below
	State  string // its state directory
	Socket string
	Log    *Log

	o      Options
	t      testing.TB
	marker string
	exe    string
	config map[string]any

	cmd     *exec.Cmd
	exited  chan struct{} // closed when the running process was reaped
	read    chan struct{} // closed when its log is read to the end
	addr    string        // host:port of the running process
	process string        // identity of the running process
	killed  []string      // identities that SIGKILL ended, since the last start that became ready
}

// Start starts a daemon that serves, and ends it with the test.
func Start(t testing.TB, o Options) *Daemon {
	t.Helper()
	d := New(t, o)
	d.Launch(t)
	return d
}

// New prepares a daemon without starting it. It is ended with the test.
func New(t testing.TB, o Options) *Daemon {
	t.Helper()
	d, err := prepare(o)
	if err != nil {
		t.Fatal(err)
	}
	d.t = t
	t.Cleanup(func() { d.End(t) })
	return d
}

// prepare lays out the directory of a daemon.
func prepare(o Options) (*Daemon, error) {
	binary, err := built()
	if err != nil {
		return nil, err
	}
	d := &Daemon{o: o, Log: newLog(), Dir: o.Dir}
	if d.Dir == "" {
		// Not t.TempDir: the name of a test in it makes the path too long for a socket.
		if d.Dir, err = os.MkdirTemp("", "cjmd-"); err != nil {
			return nil, fmt.Errorf("cannot make a directory for the daemon: %w", err)
		}
	}
	d.State, d.Socket = filepath.Join(d.Dir, "state"), filepath.Join(d.Dir, "s")
	d.marker = "OMP_CJMD_TEST=" + filepath.Base(d.Dir) // a family of names that workers inherit
	d.exe = filepath.Join(d.Dir, "cjmd")
	// A name of its own for the program tells this daemon's helper processes.
	if err := os.Link(binary, d.exe); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot link the daemon: %w", err)
	}
	if err := writePlugins(d.PluginDir(), d.runsPath()); err != nil {
		return nil, err
	}
	d.config = map[string]any{
		"state_dir": d.State, "server.socket": d.Socket, "server.listen": "127.0.0.1:0",
		"log.level": "debug", "log.format": "json", "plugins.paths": []string{d.PluginDir()},
		"monitor.interval_idle": "100ms", "monitor.interval_busy": "100ms", "scheduler.ram_margin_mb": 0,
		"jobs.cancel_grace": "300ms", "jobs.interrupt_grace": "300ms", "workers.drain_grace": "5s",
	}
	maps.Copy(d.config, o.Config)
	return d, d.writeConfig()
}

// PluginDir is where the test plugins are.
func (d *Daemon) PluginDir() string { return filepath.Join(d.Dir, "plugins") }

func (d *Daemon) runsPath() string { return filepath.Join(d.Dir, "runs.jsonl") }

// ConfigPath is the daemon's configuration file.
func (d *Daemon) ConfigPath() string { return filepath.Join(d.Dir, "cjmd.yaml") }

// SetConfig changes keys of the configuration file; a running daemon reads it
// again when told to.
func (d *Daemon) SetConfig(t testing.TB, change map[string]any) {
	t.Helper()
	maps.Copy(d.config, change)
	if err := d.writeConfig(); err != nil {
		t.Fatal(err)
	}
}

func (d *Daemon) writeConfig() error {
	nested := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(d.config)) {
		at := nested
		parts := strings.Split(key, ".")
		for _, p := range parts[:len(parts)-1] {
			if at[p] == nil {
				at[p] = map[string]any{}
			}
			at = at[p].(map[string]any)
		}
		at[parts[len(parts)-1]] = d.config[key]
	}
	b, err := yaml.Marshal(nested)
	if err != nil {
		return fmt.Errorf("cannot write the configuration: %w", err)
	}
	if err := os.WriteFile(d.ConfigPath(), b, 0o600); err != nil {
		return fmt.Errorf("cannot write the configuration: %w", err)
	}
	return nil
}

// command is the daemon's command line with extra arguments.
func (d *Daemon) command(args ...string) *exec.Cmd {
	line := append(slices.Clone(d.o.Wrap), d.exe, "--config", d.ConfigPath())
	line = append(line, args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir = d.Dir
	cmd.Env = append([]string{
		"HOME=" + d.Dir, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", d.marker,
		"GORACE=atexit_sleep_ms=0 halt_on_error=0", // without it each exit under -race takes a second
	}, d.o.Env...)
	return cmd
}

// Launch starts the process and waits until it is ready.
func (d *Daemon) Launch(t testing.TB) {
	t.Helper()
	if err := d.launch(); err != nil {
		t.Fatalf("cannot start the daemon: %v\n%s", err, d.Log.Text(8<<10))
	}
	for _, process := range d.killed {
		assertNoCgroup(t, process, true)
	}
	d.killed = nil
}

// LaunchUnready starts the process and does not wait for anything.
func (d *Daemon) LaunchUnready(t testing.TB) {
	t.Helper()
	if err := d.spawn(); err != nil {
		t.Fatalf("cannot start the daemon: %v", err)
	}
}

func (d *Daemon) launch() error {
	mark := d.Log.Mark()
	if err := d.spawn(); err != nil {
		return err
	}
	serving, err := d.Log.await(mark, patience, func(l Line) bool { return l.Msg == "serving" })
	if err != nil {
		return err
	}
	if addresses, ok := serving.Fields["addresses"].([]any); ok {
		for _, a := range addresses {
			if s, _ := a.(string); s != "" && !strings.HasPrefix(s, "unix:") {
				d.addr = s
			}
		}
	}
	return d.awaitReady()
}

// spawn starts the process and the goroutines that read its log and reap it.
func (d *Daemon) spawn() error {
	cmd := d.command()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the daemon: %w", err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return err
	}
	d.cmd, d.exited, d.read = cmd, make(chan struct{}), make(chan struct{})
	d.process = identity(cmd.Process.Pid)
	d.Log.mu.Lock()
	d.Log.ended = false
	d.Log.mu.Unlock()
	go func() {
		d.Log.read(r)
		_ = r.Close()
		close(d.read)
	}()
	go func(exited chan struct{}) {
		_ = cmd.Wait() // its state says how it ended
		close(exited)
	}(d.exited)
	return nil
}

// awaitReady asks /readyz again after each event of the monitor: it is the last
// thing that a daemon waits for.
func (d *Daemon) awaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	api, err := client.New(client.Options{Socket: d.Socket})
	if err != nil {
		return err
	}
	defer api.CloseIdle()
	events, err := api.Do(ctx, http.MethodGet, "/v1/events?kind=monitor.", nil, nil)
	if err != nil {
		return err
	}
	defer events.Body.Close()
	if err := client.Check(events); err != nil {
		return err
	}
	changes := client.NewSSEReader(events.Body)
	for {
		resp, err := api.Readyz(ctx)
		if err != nil {
			return err
		}
		why, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		if _, err := changes.Next(); err != nil {
			return fmt.Errorf("the daemon is not ready (%s): %w", strings.TrimSpace(string(why)), err)
		}
	}
}

// Addr is host:port of the TCP listener.
func (d *Daemon) Addr() string { return d.addr }

// PID of the running process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Running reports whether a process was started and has not been reaped.
func (d *Daemon) Running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("cannot signal the daemon: %v", err)
	}
}

// AwaitExit waits for the end of the process and returns its exit code, -1 when
// a signal ended it.
func (d *Daemon) AwaitExit(t testing.TB) int {
	t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
		<-d.exited
		t.Fatalf("the daemon did not end within %s", patience)
	}
	<-d.read
	return d.cmd.ProcessState.ExitCode()
}

// Stop ends the daemon with SIGTERM. It must exit with 0 and leave nothing.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGTERM)
	if code := d.AwaitExit(t); code != 0 {
		t.Errorf("the daemon ended with exit code %d", code)
	}
	d.AssertNothingLeft(t)
}

// Kill ends the daemon with SIGKILL. Its workers must follow it by themselves.
func (d *Daemon) Kill(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGKILL)
	d.AwaitExit(t)
	d.AssertNothingLeft(t)
}

// Restart stops the daemon and starts it again on the same state.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	d.Stop(t)
	d.Launch(t)
}

// End is what the test's cleanup does: a last look at the log, a polite stop,
// nothing left, and the directory is removed.
func (d *Daemon) End(t testing.TB) {
	if d.Running() {
		d.Stop(t)
	}
	if races := d.Log.Lines(func(l Line) bool { return strings.Contains(l.Text, "DATA RACE") || strings.HasPrefix(l.Text, "panic:") }); len(races) > 0 {
		t.Errorf("the daemon reported: %s", races[0].Text)
	}
	if t.Failed() {
		t.Logf("log of the daemon in %s:\n%s", d.Dir, d.Log.Text(64<<10))
	}
	if d.o.Dir == "" {
		if err := os.RemoveAll(d.Dir); err != nil {
			t.Errorf("cannot remove the daemon's directory: %v", err)
		}
	}
}

// Second starts another process of the same configuration and waits for its
// end: its exit code and what it wrote.
func (d *Daemon) Second(t testing.TB, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := d.command(args...)
	line := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	line.Dir, line.Env = cmd.Dir, cmd.Env
	out, err := line.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cannot start a second process: %v", err)
	}
	return line.ProcessState.ExitCode(), string(out)
}
