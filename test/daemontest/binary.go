package daemontest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// built is the daemon's program, built once per test process.
var built = sync.OnceValues(build)

// build compiles cjmd into bin/test of the module, which all packages of one run
// share (an up-to-date program is not linked again), and returns a private copy:
// a build that comes later must not change the program under a running test.
func build() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	name := "cjmd"
	args := []string{"build"}
	if raceEnabled {
		name, args = "cjmd-race", append(args, "-race")
	}
	dir := filepath.Join(root, "bin", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cannot build the daemon: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("cannot build the daemon: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot lock the build of the daemon: %w", err)
	}
	target := filepath.Join(dir, name)
	cmd := exec.Command("go", append(args, "-o", target, "./cmd/cjmd")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build the daemon: %w\n%s", err, out)
	}
	return privateCopy(target)
}

// copies are removed by Cleanup.
var copies struct {
	sync.Mutex
	dirs []string
}

func privateCopy(target string) (string, error) {
	dir, err := os.MkdirTemp("", "cjmd-bin-")
	if err != nil {
		return "", fmt.Errorf("cannot copy the daemon: %w", err)
	}
	copies.Lock()
	copies.dirs = append(copies.dirs, dir)
	copies.Unlock()
	from, err := os.Open(target)
	if err != nil {
		return "", fmt.Errorf("cannot copy the daemon: %w", err)
	}
	defer from.Close()
	path := filepath.Join(dir, "cjmd")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", fmt.Errorf("cannot copy the daemon: %w", err)
	}
	_, err = io.Copy(to, from)
	return path, errors.Join(err, to.Close())
}

// Cleanup removes what the package made for the whole test process. Call it at
// the end of TestMain.
func Cleanup() {
	copies.Lock()
	defer copies.Unlock()
	for _, dir := range copies.dirs {
		_ = os.RemoveAll(dir) // in the temporary directory: the system's to keep clean
	}
}

func moduleRoot() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("cannot find the module: no caller")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file))), nil
}

// python is the interpreter itself: a shim of a version manager would be
// started anew with each worker.
var python = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		return "", fmt.Errorf("cannot find python3: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})
