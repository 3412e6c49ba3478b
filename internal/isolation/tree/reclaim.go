package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// EmptyCgroup kills what is in dir and below, removes it all and returns how
// many processes it found. A directory that is not there is empty.
func EmptyCgroup(ctx context.Context, dir string) (int, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	n := len(cgroupPIDs(dir))
	if err := killCgroup(ctx, dir); err != nil {
		return n, err
	}
	return n, removeTree(dir)
}

// Reclaim ends what an earlier daemon on this state directory left behind, by
// whichever strategy it had started it, and returns how many processes that
// were. Call it before the first Sandbox.
func (h *Host) Reclaim(ctx context.Context) (int, error) {
	var n int
	var errs []error
	parent := h.o.CgroupParent
	if parent == "" {
		parent, _ = cgroupParent() // without a hierarchy there is nothing to sweep in it
	}
	if parent != "" {
		dirs, _ := filepath.Glob(filepath.Join(parent, "cjmd-"+h.id+".*"))
		for _, dir := range dirs {
			if filepath.Base(dir) == h.baseName() {
				continue
			}
			k, err := EmptyCgroup(ctx, dir)
			n += k
			errs = append(errs, err)
		}
	}
	k, err := h.reclaimRecords(ctx)
	errs = append(errs, err)
	return n + k, errors.Join(errs...)
}

// reclaimRecords ends the trees of recorded shims, and processes that carry
// this Host's marker, which finds those whose shim is already gone.
func (h *Host) reclaimRecords(ctx context.Context) (int, error) {
	shims := map[proc.ID]bool{}
	files, _ := filepath.Glob(filepath.Join(h.recordDir(), "*.json"))
	for _, f := range files {
		if r, ok := readRecord(f); ok {
			shims[r.Shim] = true
		}
	}
	prefix := markerKey + "=" + h.id + "/"
	n, err := proc.KillAll(ctx, func(t proc.Table) []proc.Stat {
		found := map[int]proc.Stat{}
		for pid, s := range t {
			if pid == os.Getpid() {
				continue
			}
			if shims[s.ID()] {
				found[pid] = s
				for _, b := range t.Below(pid) {
					found[b.PID] = b
				}
			} else if proc.HasEnvPrefix(pid, prefix) {
				found[pid] = s
			}
		}
		return values(found)
	})
	if err != nil {
		return n, fmt.Errorf("cannot end what an earlier daemon left: %w", err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, fmt.Errorf("cannot remove a sandbox record: %w", err)
		}
	}
	return n, nil
}

func (h *Host) recordDir() string { return filepath.Join(h.o.StateDir, "sandboxes") }

func (h *Host) recordPath(name string) string {
	return filepath.Join(h.recordDir(), strings.TrimSuffix(dirName(name), ".json")+".json")
}

func values(m map[int]proc.Stat) []proc.Stat {
	out := make([]proc.Stat, 0, len(m))
	for _, s := range m {
		out = append(out, s)
	}
	return out
}
