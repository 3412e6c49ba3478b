package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if bin != "" {
		_ = os.RemoveAll(bin)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var (
	bin      string // set by binaries
	binaries = sync.OnceValues(build)
)

// build compiles cjmd and cjm-ctl once for all scripts.
func build() (string, error) {
	dir, err := os.MkdirTemp("", "cjmd-e2e-bin")
	if err != nil {
		return "", err
	}
	bin = dir
	args := []string{"build", "-o", dir + "/"}
	if raceDetector {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/cjmd", "./cmd/cjm-ctl")...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build: %w\n%s", err, out)
	}
	return dir, nil
}

// box is one script's machine: a state directory and the daemon that runs on it.
type box struct {
	state   string
	plugins string
	tcp     string
	env     []string
	cmd     *exec.Cmd // nil when no daemon runs
	log     *os.File
}

type boxKey struct{}

func TestWholeDaemon(t *testing.T) {
	t.Parallel()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	plugins, err := filepath.Abs(filepath.Join("testdata", "plugins"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			// A Unix socket's path is short; a script's own directory may not be.
			state, err := os.MkdirTemp("", "cjmd-e2e")
			if err != nil {
				return err
			}
			tcp, err := freeAddress()
			if err != nil {
				return err
			}
			path := dir + string(os.PathListSeparator) + e.Getenv("PATH")
			for _, kv := range [][2]string{
				{"PATH", path}, {"HOME", e.WorkDir}, {"TZ", "UTC"}, {"NO_COLOR", "1"}, {"TCP", tcp},
				{"CJMD_STATE_DIR", state}, {"CJMD_WORKERS_DRAIN_GRACE", "200ms"}, {"CJMD_SERVER_LISTEN", tcp}, {"GORACE", "atexit_sleep_ms=0 halt_on_error=1"},
			} {
				e.Setenv(kv[0], kv[1])
			}
			b := &box{state: state, plugins: plugins, tcp: tcp, env: e.Vars}
			e.Values[boxKey{}] = b
			e.Defer(func() {
				b.close(e.T())
				_ = os.RemoveAll(state)
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":       daemonCommand,
			"nothing-left": nothingLeft,
		},
	})
}

// freeAddress returns a loopback address that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// daemonCommand is "daemon [FLAG…]" (start and wait until it is ready), "daemon
// stop" (SIGTERM, must end with 0) and "daemon kill" (SIGKILL).
func daemonCommand(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.Value(boxKey{}).(*box)
	switch {
	case neg:
		ts.Fatalf("daemon takes no !")
	case len(args) == 1 && args[0] == "stop":
		ts.Check(b.stop())
	case len(args) == 1 && args[0] == "kill":
		ts.Check(b.cmd.Process.Kill())
		_ = b.cmd.Wait() // "signal: killed" is what was asked for
		b.cmd = nil
	default:
		ts.Check(b.start(args))
	}
}

// start runs the daemon and returns when it says that it is ready, as a service
// manager would be told.
func (b *box) start(flags []string) error {
	if b.cmd != nil {
		return errors.New("the daemon runs already")
	}
	notify := filepath.Join(b.state, "notify")
	_ = os.Remove(notify)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer l.Close()
	if b.log == nil {
		if b.log, err = os.Create(filepath.Join(b.state, "daemon.log")); err != nil {
			return err
		}
	}
	b.cmd = exec.Command(filepath.Join(bin, "cjmd"), append([]string{"--plugins", b.plugins, "--log-format", "json"}, flags...)...)
	b.cmd.Env = append(b.env[:len(b.env):len(b.env)], "NOTIFY_SOCKET="+notify)
	b.cmd.Dir = b.state
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	if err := b.cmd.Start(); err != nil {
		b.cmd = nil
		return err
	}
	if err := l.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := l.Read(buf)
		if err != nil {
			return fmt.Errorf("the daemon did not become ready: %w\n%s", err, b.lastWords())
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			return b.awaitReady()
		}
	}
}

// awaitReady asks /readyz until the monitor has had its first look, too.
func (b *box) awaitReady() error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := http.Get("http://" + b.tcp + "/readyz")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		switch {
		case err != nil:
			return err
		case resp.StatusCode == http.StatusOK:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the daemon did not become ready: %s", body)
		}
		time.Sleep(10 * time.Millisecond) // there is nothing to wait on: readiness is asked for
	}
}

// stop ends the daemon politely; it has to end with 0, in bounded time.
func (b *box) stop() error {
	if b.cmd == nil {
		return errors.New("no daemon runs")
	}
	cmd := b.cmd
	b.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.AfterFunc(90*time.Second, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) }) // with a stack dump
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the daemon did not stop cleanly: %w\n%s", err, b.lastWords())
	}
	return nil
}

func (b *box) lastWords() string {
	data, err := os.ReadFile(filepath.Join(b.state, "daemon.log"))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4000):])
}

// close ends the script's machine: the daemon stops cleanly and leaves nothing.
func (b *box) close(t testscript.T) {
	if b.cmd != nil {
		if err := b.stop(); err != nil {
			t.Log(err.Error())
			t.FailNow()
		}
	}
	if b.log != nil {
		_ = b.log.Close()
		if data, err := os.ReadFile(b.log.Name()); err == nil && bytes.Contains(data, []byte("DATA RACE")) {
			t.Log("the daemon has a data race:\n" + string(data))
			t.FailNow()
		}
	}
	if left := b.processes(); len(left) > 0 {
		t.Log("processes are left: " + strings.Join(left, "; "))
		t.FailNow()
	}
}

// nothingLeft waits until no process of the box is left: after a daemon was
// killed its workers end by themselves, at once but not in the same moment.
func nothingLeft(ts *testscript.TestScript, _ bool, _ []string) {
	b := ts.Value(boxKey{}).(*box)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left := b.processes()
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("processes are left: %s", strings.Join(left, "; "))
		}
	}
}

// processes lists those that the daemon started: with the box's state directory
// in their environment or on their command line, but not the script's own.
func (b *box) processes() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if bytes.HasPrefix(cmdline, []byte(filepath.Join(bin, "cjm-ctl"))) || bytes.HasPrefix(cmdline, []byte("sh\x00")) {
			continue
		}
		if bytes.Contains(cmdline, []byte(b.state)) || bytes.Contains(environ, []byte(b.state)) {
			out = append(out, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
		}
	}
	return out
}
