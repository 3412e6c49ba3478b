package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openPTY returns both ends of a pseudo-terminal of 60 columns.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// onTerminal runs cjm-ctl with stdout and stderr on a terminal and returns what
// the terminal got.
func onTerminal(t *testing.T, env []string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	startFake(t, l, "")
	master, slave := openPTY(t)
	cmd := exec.Command("cjm-ctl", args...)
	cmd.Env = append([]string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "TZ=UTC", "TERM=xterm", "LANG=C.UTF-8", "GORACE=atexit_sleep_ms=0", "CJMD_SOCKET=" + filepath.Join(dir, "s")}, env...)
	cmd.Stdout, cmd.Stderr = slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	var got bytes.Buffer
	// Linux ends the reading with EIO when the last slave is closed.
	if _, err := io.Copy(&got, master); err != nil && !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, got.String())
	}
	return got.String()
}

func TestTerminal_ProgressAboveChunks(t *testing.T) {
	t.Parallel()
	got := onTerminal(t, nil, "run", "counter", "--stream")
	for _, want := range []string{
		"━",                               // the bar
		"43%",                             // of the progress
		"\r\x1b[Kone\r\n",                 // a chunk on a cleared line
		"two\uFFFD[31m",                   // which cannot colour the terminal
		"\x1b[32mjob job-1 completed\x1b", // the end
		" after 1.5s\r\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the terminal did not get %q:\n%q", want, got)
		}
	}
	// No drawn line may wrap, and none may stay behind.
	for part := range strings.SplitSeq(got, "\r") {
		text := regexp.MustCompile(`\x1b\[[0-9;]*[A-Za-z]`).ReplaceAllString(strings.Trim(part, "\n"), "")
		if cells(text) > 59 {
			t.Errorf("%d columns on a terminal of 60: %q", cells(text), text)
		}
	}
	if last := got[strings.LastIndex(got, "━"):]; !strings.Contains(last, "\r\x1b[K") {
		t.Errorf("the progress line was left behind: %q", last)
	}
}

func TestTerminal_ColoursOnlyWhereWanted(t *testing.T) {
	t.Parallel()
	if got := onTerminal(t, nil, "status"); !strings.Contains(got, "\x1b[1mWORKER") {
		t.Errorf("no colours on a terminal: %q", got)
	}
	for _, plainly := range [][]string{{"NO_COLOR=1"}, {"TERM=dumb"}} {
		if got := onTerminal(t, plainly, "status"); strings.Contains(got, "\x1b[") {
			t.Errorf("%v: colours: %q", plainly, got)
		}
	}
	if got := onTerminal(t, nil, "status", "--no-color"); strings.Contains(got, "\x1b[") {
		t.Errorf("--no-color: colours: %q", got)
	}
}

func TestTerminal_TablesFit(t *testing.T) {
	t.Parallel()
	got := onTerminal(t, []string{"NO_COLOR=1"}, "plugins")
	for line := range strings.SplitSeq(strings.ReplaceAll(got, "\r\n", "\n"), "\n") {
		if cells(line) > 60 {
			t.Errorf("%d columns on a terminal of 60: %q", cells(line), line)
		}
	}
	if !strings.Contains(got, "…") {
		t.Errorf("nothing was shortened:\n%s", got)
	}
}

// The wheel turns while nothing else happens, so that time is seen to pass.
func TestLive_SpinsUntilStopped(t *testing.T) {
	t.Parallel()
	master, slave := openPTY(t)
	a := newApp(world{stdout: io.Discard, stderr: slave, now: time.Now, env: []string{"LANG=C.UTF-8"}})
	l := newLive(a, view{title: "x", phase: "executing", fraction: -1, started: time.Now()})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); l.spin(stop) }()
	buf := make([]byte, 4096)
	var seen strings.Builder
	for !strings.Contains(seen.String(), "⠹") {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	close(stop)
	<-done
	_ = slave.Close()
}
