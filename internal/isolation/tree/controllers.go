package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/isolation/cgroup"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// Group is a sandbox whose tree may be one cgroup.
type Group interface {
	Dir() string // "" when it is none
}

// daemonLeaf is the cgroup that the daemon moves itself into: the kernel enables
// no controller for the children of a cgroup that has processes of its own.
const daemonLeaf = "cjmd-daemon"

// enableControllers brings the controllers of parent down to the leaves below
// base and notes what is missing. None of it is needed to end a tree.
func (h *Host) enableControllers(parent, base string) {
	h.missing = map[string]string{}
	if err := makeRoom(parent); err != nil {
		for _, c := range cgroup.Wanted() {
			h.missing[c] = fmt.Sprintf("controller %s is not enabled: %v", c, err)
		}
	} else {
		h.missing = cgroup.Enable(parent)
		for c, why := range cgroup.Enable(base) {
			if h.missing[c] == "" {
				h.missing[c] = why
			}
		}
	}
	if len(h.missing) > 0 {
		h.o.Log.Info("limits of workers that cannot be held here", zap.Any("missing", h.missing))
	}
}

// makeRoom moves this process and those that it started out of parent into a leaf
// of their own, where they are alone in there, as a service is to which systemd
// delegated its cgroup. Otherwise the kernel would refuse the controllers of
// memory and I/O, and with the others make a thread root of parent, below which
// no process may be. The processes of others are not ours to move.
func makeRoom(parent string) error {
	if !cgroup.Has(parent, "cgroup.type", "domain") || !available(parent) {
		return nil // the root of the hierarchy may have both; or there is nothing to enable
	}
	pids, err := cgroup.Processes(parent)
	if err != nil || len(pids) == 0 {
		return err
	}
	t, err := proc.All()
	if err != nil {
		return err
	}
	ours := map[int]bool{os.Getpid(): true}
	for _, s := range t.Below(os.Getpid()) {
		ours[s.PID] = true
	}
	if others := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return ours[pid] }); len(others) > 0 {
		return fmt.Errorf("%d processes of others are in %s (Delegate=yes gives a service one of its own)", len(others), parent)
	}
	leaf := filepath.Join(parent, daemonLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	for _, pid := range pids {
		if err := cgroup.Move(leaf, pid); err != nil {
			return err
		}
	}
	return nil
}

// available reports whether dir has a controller that workers could be limited by.
func available(dir string) bool {
	return slices.ContainsFunc(cgroup.Wanted(), func(c string) bool { return cgroup.Has(dir, "cgroup.controllers", c) })
}

// MissingController says why no limit of a controller can be held, "" when it can.
func (h *Host) MissingController(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.missing[name]
}

// Rejected says why a strategy is not in use, "" when it was not tried.
func (h *Host) Rejected(s Strategy) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rejected[string(s)]
}

// ownCgroup is where this process is, or was before it made room.
func ownCgroup() string {
	own := proc.Cgroup(os.Getpid())
	if filepath.Base(own) == daemonLeaf {
		return filepath.Dir(own)
	}
	return own
}
