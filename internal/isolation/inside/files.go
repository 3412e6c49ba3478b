package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is the view of the file system that a worker gets: the host's, read-only,
// with some directories empty and some places writable. Paths are absolute and
// clean. Everything below is made in the caller's mount namespace, which must be
// its own.
type Tree struct {
	Hide  []string `json:"hide,omitempty"`  // directories that look empty
	Read  []string `json:"read,omitempty"`  // seen as they are, also below what is hidden
	Write []string `json:"write,omitempty"` // the same, and writable
	Nodes []string `json:"nodes,omitempty"` // device nodes besides the harmless ones
	Shm   int64    `json:"shm,omitempty"`   // bytes of /dev/shm
}

// harmless are the device nodes that every program expects.
var harmless = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}

// Writable are the places where a worker may write once the tree is made.
func (t Tree) Writable() []string {
	return append([]string{"/tmp", "/var/tmp", "/dev/shm", "/proc"}, t.Write...)
}

// Granted are the device nodes that a worker has.
func (t Tree) Granted() []string {
	return slices.DeleteFunc(slices.Concat(harmless, t.Nodes), func(p string) bool { return !exists(p) })
}

// clone is a piece of the old view, to be attached to the new one.
type clone struct {
	path string
	fd   int
	dir  bool
}

// Make changes the calling process' view to t.
func (t Tree) Make() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	nodes := slices.Concat(harmless, t.Nodes)
	granted, err := t.clones(nodes)
	defer func() {
		for _, c := range granted {
			unix.Close(c.fd)
		}
	}()
	if err != nil {
		return err
	}
	if err := readOnly("/", true); err != nil {
		return err
	}
	covers, err := t.arrange(granted)
	if err != nil {
		return err
	}
	for _, dir := range covers {
		if dir != "/tmp" && dir != "/var/tmp" {
			if err := readOnly(dir, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// arrange hides and grants, parents first, so that whatever is said of the
// deeper path holds: a grant below something hidden, and something hidden below
// a grant. It returns what was covered.
func (t Tree) arrange(granted []clone) (covers []string, err error) {
	type step struct {
		path  string
		grant *clone // nil: hide
	}
	steps := []step{{path: "/proc"}}
	for _, dir := range slices.Concat(t.Hide, []string{"/tmp", "/var/tmp", "/dev"}) {
		steps = append(steps, step{path: dir})
	}
	for i := range granted {
		steps = append(steps, step{granted[i].path, &granted[i]})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return strings.Compare(a.path, b.path) })
	for _, s := range steps {
		switch {
		case s.grant != nil:
			err = s.grant.attach()
		case s.path == "/proc":
			if err = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
				err = fmt.Errorf("cannot mount a /proc of its own: %w", err)
			}
		case isDir(s.path) && !slices.Contains(covers, s.path):
			covers = append(covers, s.path)
			err = empty(s.path, t.Shm)
		}
		if err != nil {
			return nil, err
		}
	}
	return covers, nil
}

// clones takes what is granted out of the old view before that becomes
// read-only. A granted path that is not there is an error: it would be missed.
func (t Tree) clones(nodes []string) (out []clone, err error) {
	for _, p := range slices.Concat(t.Read, t.Write, nodes) {
		if p == "/dev/tty" && !exists(p) {
			continue
		}
		st, err := os.Stat(p)
		if err != nil {
			return out, fmt.Errorf("cannot grant %s: %w", p, err)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return out, fmt.Errorf("cannot grant %s: %w", p, err)
		}
		out = append(out, clone{path: p, fd: fd, dir: st.IsDir()})
		if slices.Contains(t.Read, p) {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
				return out, fmt.Errorf("cannot make %s read-only: %w", p, err)
			}
		}
	}
	return out, nil
}

func (c clone) attach() error {
	if !exists(c.path) { // below something hidden
		if err := os.MkdirAll(filepath.Dir(c.path), 0o755); err != nil {
			return fmt.Errorf("cannot grant %s: %w", c.path, err)
		}
		var err error
		if c.dir {
			err = os.Mkdir(c.path, 0o755)
		} else {
			err = os.WriteFile(c.path, nil, 0o644)
		}
		if err != nil {
			return fmt.Errorf("cannot grant %s: %w", c.path, err)
		}
	}
	if err := unix.MoveMount(c.fd, "", unix.AT_FDCWD, c.path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot grant %s: %w", c.path, err)
	}
	return nil
}

// readOnly changes one mount, or it and everything below.
func readOnly(path string, below bool) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	flags := uint(0)
	if below {
		flags = unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, flags, &attr); err != nil {
		return fmt.Errorf("cannot make %s read-only: %w", path, err)
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// empty covers dir with an empty file system.
func empty(dir string, shm int64) error {
	mode := "mode=755,size=1m"
	if dir == "/tmp" || dir == "/var/tmp" {
		mode = "mode=1777"
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, mode); err != nil {
		return fmt.Errorf("cannot cover %s: %w", dir, err)
	}
	if dir == "/dev" {
		return devices(shm)
	}
	return nil
}

// devices makes what a /dev has besides its nodes.
func devices(shm int64) error {
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return fmt.Errorf("cannot make /dev: %w", err)
		}
	}
	for _, m := range []struct{ dir, kind, data string }{
		{"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=620"},
		{"/dev/shm", "tmpfs", fmt.Sprintf("mode=1777,size=%d", shm)},
	} {
		if err := os.Mkdir(m.dir, 0o755); err != nil {
			return fmt.Errorf("cannot make /dev: %w", err)
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.data); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.dir, err)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
