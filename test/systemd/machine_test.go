//go:build systemd

package systemd

import (
	"bytes"
	"context"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a booted systemd.
type machine struct {
	t      *testing.T
	pid    int // of its process 1, as the host numbers it
	cgroup string
	http   *http.Client
}

// boot starts a machine that ends with the test, whatever the test did to it.
func boot(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, cgroup: filepath.Join(cgroup2(t), fmt.Sprintf("cjmd-systemd-test-%d", os.Getpid()))}
	dir := t.TempDir()
	if err := os.Mkdir(m.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	group, err := os.Open(m.cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	script, err := filepath.Abs("boot.sh")
	if err != nil {
		t.Fatal(err)
	}
	console, err := os.Create(filepath.Join(dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--pid", "--cgroup", "--net", "--uts", "--ipc", "--fork", "--kill-child", script, dir)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		killGroup(t, m.cgroup)
		_ = cmd.Wait() // killed: its status says nothing
		m.http.CloseIdleConnections()
		removeGroups(t, m.cgroup)
		if t.Failed() {
			out, _ := os.ReadFile(console.Name())
			t.Logf("console:\n%s", out)
		}
		console.Close()
	})
	m.http = &http.Client{Transport: &http.Transport{DialContext: m.dial}}
	m.pid = child(t, cmd.Process.Pid)
	// It execs systemd when everything is mounted; its manager's socket is there a
	// moment later. Nothing tells either from outside.
	for !m.up() {
		if cmd.ProcessState != nil || t.Context().Err() != nil {
			t.Fatal("the machine ended while it booted")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if out, err := m.try("systemctl", "is-system-running", "--wait"); err != nil {
		t.Fatalf("the machine is %s", out)
	}
	return m
}

func (m *machine) up() bool {
	_, err := os.Stat(m.path("run/systemd/private"))
	return err == nil
}

// cgroup2 is where the v2 hierarchy is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("no cgroup v2 hierarchy is mounted")
	return ""
}

// child is the only child of a process that has just been started.
func child(t *testing.T, pid int) int {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	for {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("the machine did not start: %v", err)
		}
		if list := strings.Fields(string(text)); len(list) > 0 {
			n, err := strconv.Atoi(list[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// killGroup kills everything in a control group and waits until nothing is left:
// the kernel tells of a change of cgroup.events by POLLPRI.
func killGroup(t *testing.T, top string) {
	events, err := os.Open(filepath.Join(top, "cgroup.events"))
	if err != nil {
		t.Error(err)
		return
	}
	defer events.Close()
	if err := os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0); err != nil {
		t.Error(err)
	}
	for text := make([]byte, 256); ; {
		n, err := events.ReadAt(text, 0)
		if err != nil && err != io.EOF {
			t.Error(err)
			return
		}
		if strings.Contains(string(text[:n]), "populated 0") {
			return
		}
		wait := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if ready, err := unix.Poll(wait, 10_000); ready == 0 || err != nil && err != unix.EINTR {
			t.Errorf("the control group of the machine does not become empty: %v", err)
			return
		}
	}
}

// removeGroups removes a control group that has been killed, from its leaves up.
func removeGroups(t *testing.T, top string) {
	var groups []string
	if err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for i := len(groups) - 1; i >= 0; i-- {
		if err := syscall.Rmdir(groups[i]); err != nil {
			t.Errorf("cannot remove control group: %s: %v", groups[i], err)
		}
	}
}

// path names a file of the machine from outside.
func (m *machine) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.pid), "root", name)
}

// try runs a command inside; its output is returned also when it fails.
func (m *machine) try(command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-a", "env", "-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}, command...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// run is try for what must not fail.
func (m *machine) run(command ...string) string {
	m.t.Helper()
	out, err := m.try(command...)
	if err != nil {
		journal, _ := m.try("journalctl", "-u", "cjmd", "-n", "40", "--no-pager", "-o", "cat")
		m.t.Fatalf("%s: %v\n%s\n--- journal\n%s", strings.Join(command, " "), err, out, journal)
	}
	return out
}

// show is one property of the service.
func (m *machine) show(property string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property="+property, "cjmd.service")
}

func (m *machine) number(property string) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.show(property))
	if err != nil {
		m.t.Fatalf("%s: %v", property, err)
	}
	return n
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// left are the processes that the service's user still has, and its control
// group where that is still there.
func (m *machine) left() string {
	m.t.Helper()
	out, err := m.try("pgrep", "-a", "-u", "cjmd")
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		m.t.Fatalf("pgrep: %v: %s", err, out)
	}
	if _, err := os.Stat(m.path("sys/fs/cgroup/system.slice/cjmd.service")); err == nil {
		out += "\ncontrol group cjmd.service"
	}
	return strings.TrimSpace(out)
}

// refused means that nobody listened: the one thing that must never happen
// while the socket unit is there.
type refused struct{ error }

func (m *machine) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", m.path("run/cjmd/cjmd.sock"))
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil, refused{err}
	}
	return conn, err
}

// ask makes one request, without a body where that is nil. An error means that there was no whole answer.
func (m *machine) ask(method, path string, body any) (int, map[string]any, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://cjmd"+path, bytes.NewReader(text))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := m.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, err
	}
	var v map[string]any
	if len(raw) > 0 {
		err = json.Unmarshal(raw, &v)
	}
	return resp.StatusCode, v, err
}

// insist asks until there is a whole answer: a daemon that is killed takes its
// connections along, but somebody always listens.
func (m *machine) insist(method, path string, body any) (int, map[string]any) {
	m.t.Helper()
	for {
		code, v, err := m.ask(method, path, body)
		if err == nil {
			return code, v
		}
		if r := (refused{}); errors.As(err, &r) || m.t.Context().Err() != nil {
			m.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}
