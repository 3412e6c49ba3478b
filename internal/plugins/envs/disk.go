package envs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cjmd/cjmd/internal/plugins"
)

// lock keeps two installers off one environment.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another installer is at work on it")
		}
		return nil, err
	}
	return func() {
		// Closing alone would leave the lock with a child that another goroutine is
		// just starting, until it executes its program.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		_ = f.Close()
	}, nil
}

// diskUse is what a directory takes on the disk. A file that is hard-linked
// elsewhere (uv links its cache) counts as a whole.
func diskUse(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // what vanished takes no room
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				total += st.Blocks * 512
			}
		}
		return nil
	})
	return total
}

func cutLine(s string) (first, rest string) {
	first, rest, _ = strings.Cut(s, "\n")
	return strings.TrimSpace(first), strings.TrimSpace(rest)
}

// builds are the directories of an environment, the one in force among them.
func (in *Installer) builds(env string) []string {
	entries, err := os.ReadDir(in.o.Envs)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), "."+env+".")
		if ok && e.IsDir() && len(id) == 8 && isHex(id) {
			out = append(out, filepath.Join(in.o.Envs, e.Name()))
		}
	}
	return out
}

func isHex(s string) bool {
	_, err := strconv.ParseUint(s, 16, 64)
	return err == nil
}

// current is the build in force; "" when there is none.
func (in *Installer) current(env string) string {
	dir, err := filepath.EvalSymlinks(filepath.Join(in.o.Envs, env))
	if err != nil {
		return ""
	}
	return dir
}

// dropUnfinished removes what an interrupted installation left. The caller has
// the lock, so nobody is at work on it.
func (in *Installer) dropUnfinished(env string) {
	for _, dir := range in.builds(env) {
		if _, err := plugins.ReadEnvRecord(dir); errors.Is(err, fs.ErrNotExist) && dir != in.current(env) {
			_ = os.RemoveAll(dir) // what cannot be removed is listed by doctor
		}
	}
}

// dropOld removes the builds that are not in force any more and that no process
// runs from. It says which ones stay.
func (in *Installer) dropOld(env string) (stays []string) {
	now := in.current(env)
	for _, dir := range in.builds(env) {
		if dir == now {
			continue
		}
		if pids := users(dir); len(pids) > 0 {
			stays = append(stays, fmt.Sprintf("%s stays until the process that uses it ends (%s); then: cjm-ctl doctor --fix", dir, strings.Join(pids, ", ")))
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			stays = append(stays, fmt.Sprintf("cannot remove %s: %v", dir, err))
		}
	}
	return stays
}

// users are the processes that were started from an interpreter or program in
// dir. Those of other users are seen, too, unless the system hides them.
func users(dir string) []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.HasPrefix(cmdline, []byte(dir+"/")) {
			out = append(out, "pid "+e.Name())
		}
	}
	return out
}
