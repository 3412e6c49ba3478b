// Package sandboxed is the tier against plugins that are not trusted: namespaces
// for processes, mounts, IPC and (where asked) the network, the host's files
// read-only with the daemon's and everybody's homes hidden, a /dev with only the
// granted accelerators, Landlock, a system call filter, no capabilities and, where
// the daemon is root, a user of its own. The shim makes all that (package inside);
// limits are those of tier contained.
package sandboxed

import (
	"context"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/contained"
	"github.com/cjmd/cjmd/internal/isolation/inside"
	"github.com/cjmd/cjmd/internal/isolation/outside"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

const (
	// shmSize is what data loaders of the large frameworks need at least.
	shmSize = 1 << 30
	// shimThreads is how many of a worker's processes and threads are the shim's.
	shimThreads = 16
	// Users of workers, where the daemon is root: a range that no distribution and
	// no container manager gives out.
	firstUser = 1_900_000_000
	userRange = 100_000_000
)

// Options of the tier.
type Options struct {
	// Hide are the daemon's own directories. Homes are hidden besides.
	Hide []string
}

type tier struct {
	host *tree.Host
	hide []string

	mu     sync.Mutex
	probed bool  // guarded by mu
	err    error // guarded by mu
}

// New returns the tier on host, which the caller closes.
func New(host *tree.Host, o Options) isolation.Tier {
	hide := slices.Concat(o.Hide, []string{"/home", "/root", "/run"})
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		hide = append(hide, home)
	}
	return &tier{host: host, hide: hide}
}

func (t *tier) Name() string { return "sandboxed" }

// Probe starts a process in such a sandbox, once.
func (t *tier) Probe(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.probed {
		return t.err
	}
	t.err = t.try(ctx)
	t.probed = ctx.Err() == nil
	return t.err
}

func (t *tier) try(ctx context.Context) error {
	if _, err := t.host.Strategy(ctx); err != nil {
		return err
	}
	sb, err := t.host.Sandbox(ctx, "probe", t.confine(isolation.Spec{Name: "probe"}))
	if err != nil {
		return err
	}
	defer sb.Close()
	return t.host.Try(ctx, sb)
}

func (t *tier) Reclaim(ctx context.Context) (int, error) { return t.host.Reclaim(ctx) }

// confine is the plan for one worker.
func (t *tier) confine(spec isolation.Spec) tree.Confine {
	v := spec.View
	read := v.Read
	for _, p := range services {
		if _, err := os.Stat(p); err == nil {
			read = append(read[:len(read):len(read)], p)
		}
	}
	box := &tree.Box{
		Tree:    inside.Tree{Hide: t.hide, Read: read, Write: slices.Concat(v.Own, v.Shared), Nodes: v.Nodes, Shm: shmSize},
		Network: tree.HostNetwork,
		NoFile:  spec.NoFile,
	}
	if v.Network != "" {
		box.Network = tree.Network(v.Network)
	}
	if os.Geteuid() == 0 {
		box.UID, box.GID = user(spec.Name), firstUser
	}
	return tree.Confine{NoNewPrivs: true, DeathSig: true, Box: box}
}

// services of the host below /run that programs talk to: names of hosts, and the
// daemon that keeps GPUs initialised.
var services = []string{"/run/systemd/resolve", "/run/nvidia-persistenced", "/run/nscd", "/run/resolvconf"}

// user is the worker's, the same in each of its generations.
func user(name string) int {
	instance := strings.TrimSuffix(name, filepath.Ext(name))
	h := fnv.New32a()
	h.Write([]byte(instance))
	return firstUser + 1 + int(h.Sum32()%userRange)
}

func (t *tier) Prepare(ctx context.Context, spec isolation.Spec) (isolation.Sandbox, error) {
	if err := t.Probe(ctx); err != nil {
		return nil, err
	}
	c := t.confine(spec)
	if c.Box.UID != 0 {
		for _, dir := range spec.View.Own {
			if err := give(dir, c.Box.UID, c.Box.GID); err != nil {
				return nil, err
			}
		}
		for _, dir := range spec.View.Shared {
			if err := share(dir, c.Box.GID); err != nil {
				return nil, err
			}
		}
	}
	sb, err := t.host.Sandbox(ctx, spec.Name, c)
	if err != nil {
		return nil, err
	}
	limited := spec
	if limited.PidsMax > 0 {
		limited.PidsMax += shimThreads
	}
	return &sandbox{Sandbox: sb, spec: spec, box: c.Box, limits: contained.Limit(t.host, sb, limited)}, nil
}

// give makes the worker's user the owner of a directory of its own and of all in
// it. Nothing is followed out of it: a worker may have put links there.
func give(dir string, uid, gid int) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("cannot give %s to the worker's user: %w", dir, err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, path), &st) == nil && int(st.Uid) == uid {
			return nil
		}
		return root.Lchown(path, uid, gid)
	})
	if err != nil {
		return fmt.Errorf("cannot give %s to the worker's user: %w", dir, err)
	}
	return nil
}

// share lets the users of all workers write into a directory; what one of them
// puts there is readable for the others.
func share(dir string, gid int) error {
	if err := os.Chown(dir, -1, gid); err != nil {
		return fmt.Errorf("cannot share %s among workers: %w", dir, err)
	}
	if err := os.Chmod(dir, 0o775|fs.ModeSetgid); err != nil {
		return fmt.Errorf("cannot share %s among workers: %w", dir, err)
	}
	return nil
}

type sandbox struct {
	isolation.Sandbox
	spec   isolation.Spec
	box    *tree.Box
	limits []isolation.Fact
	facts  []isolation.Fact // written by Start, before anybody asks for a report
}

func (s *sandbox) Start(cmd *exec.Cmd) error {
	if err := s.Sandbox.Start(cmd); err != nil {
		return err
	}
	pid := s.PID()
	if pid == 0 { // ended already; Wait tells how
		return nil
	}
	s.facts = append(outside.Confine(pid, s.spec), s.readBack(pid)...)
	return nil
}

// readBack looks at the worker from outside: what the shim said must be seen there.
func (s *sandbox) readBack(pid int) []isolation.Fact {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	seen := func(mechanism, line, what string) isolation.Fact {
		f := isolation.Fact{Mechanism: mechanism, Requested: true, VerifiedBy: "/proc/PID/status", Detail: what}
		f.InForce = err == nil && strings.Contains(string(status), line)
		if !f.InForce {
			f.Detail = fmt.Sprintf("no %q there (%v)", strings.TrimSpace(line), err)
		}
		return f
	}
	facts := []isolation.Fact{
		seen("no_capabilities", "\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n", "effective and bounding sets are empty"),
		seen("system_call_filter", "\nSeccomp:\t2\n", "mode 2"),
	}
	if s.box.UID != 0 {
		facts = append(facts, seen("own_uid", fmt.Sprintf("\nUid:\t%d\t", s.box.UID), fmt.Sprintf("user %d", s.box.UID)))
	}
	namespaces := []string{"pid", "mnt", "ipc"}
	if s.box.Network != tree.HostNetwork {
		namespaces = append(namespaces, "net")
	}
	if os.Geteuid() != 0 {
		namespaces = append(namespaces, "user")
	}
	for _, ns := range namespaces {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		other, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		f := isolation.Fact{Mechanism: ns + "_namespace", Requested: true, VerifiedBy: "/proc/PID/ns", Detail: other}
		f.InForce = err == nil && err2 == nil && own != other
		if err2 != nil {
			f.Detail = err2.Error()
		}
		facts = append(facts, f)
	}
	return facts
}

func (s *sandbox) Report() []isolation.Fact {
	return append(append(s.Sandbox.Report(), s.limits...), s.facts...)
}
