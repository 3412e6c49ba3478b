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
	h.missing = cgroup.Enable(parent)
	if refused := available(parent, h.missing); len(refused) > 0 {
		if err := makeRoom(parent); err != nil {
			for _, c := range refused {
				h.missing[c] += "; " + err.Error()
			}
		} else {
			h.missing = cgroup.Enable(parent)
		}
	}
	for c, why := range cgroup.Enable(base) {
		if h.missing[c] == "" {
			h.missing[c] = why
		}
	}
	if len(h.missing) > 0 {
		h.o.Log.Info("limits of workers that cannot be held here", zap.Any("missing", h.missing))
	}
}

// available are those of the controllers that dir has and did not enable.
func available(dir string, controllers map[string]string) []string {
	var names []string
	for c := range controllers {
		if cgroup.Has(dir, "cgroup.controllers", c) {
			names = append(names, c)
		}
	}
	return names
}

// makeRoom moves this process out of parent into a leaf of its own, where it is
// alone in there, as a service is to which systemd delegated its cgroup. The
// processes of others are not ours to move.
func makeRoom(parent string) error {
	pids, err := cgroup.Processes(parent)
	if err != nil {
		return err
	}
	if others := slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() }); len(others) > 0 {
		return fmt.Errorf("%d processes of others are in %s (Delegate=yes gives a service one of its own)", len(others), parent)
	}
	leaf := filepath.Join(parent, daemonLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	return cgroup.Move(leaf, os.Getpid())
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
