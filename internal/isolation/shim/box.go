package shim

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/inside"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

// enter makes the surroundings of a box. The namespaces are there already; what a
// worker's life does not depend on (Landlock, the system call filter) is told
// when it cannot be had, the rest fails the start.
func enter(b *tree.Box) ([]isolation.Fact, error) {
	if err := b.Tree.Make(); err != nil {
		return nil, err
	}
	facts := []isolation.Fact{
		receipt("fs", fmt.Sprintf("read-only, %d places hidden, %d writable", len(b.Tree.Hide), len(b.Tree.Write)), nil),
		receipt("gpu", nodes(b.Tree.Nodes), nil),
		receipt("pids_hidden", "PID namespace with a /proc of its own", nil),
		receipt("ipc", "IPC namespace, /dev/shm of its own", nil),
	}
	switch b.Network {
	case tree.NoNetwork:
		facts = append(facts, receipt("net", "network namespace without an interface that is up", nil))
	case tree.LoopbackNetwork:
		if err := inside.LoopbackUp(); err != nil {
			return nil, err
		}
		facts = append(facts, receipt("net", "network namespace with a loopback interface of its own", nil))
	}
	if err := inside.Limit(b.NoFile); err != nil {
		return nil, err
	}
	// Also where the daemon's own thread has it set: the filters need it.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	abi, err := inside.Landlock(b.Tree.Writable(), append([]string{"/dev/pts", "/dev/ptmx"}, b.Tree.Granted()...))
	facts = append(facts, receipt("landlock", fmt.Sprintf("ABI %d", abi), err))
	if err := inside.DropCapabilities(); err != nil {
		return nil, err
	}
	facts = append(facts, receipt("capabilities", "none", nil))
	return append(facts, receipt("seccomp", "system calls beyond the sandbox answer EPERM", inside.Seccomp())), nil
}

func receipt(mechanism, detail string, err error) isolation.Fact {
	f := isolation.Fact{Mechanism: mechanism, Requested: true, InForce: err == nil, VerifiedBy: "shim receipt", Detail: detail}
	if err != nil {
		f.Detail = err.Error()
	}
	return f
}

func nodes(granted []string) string {
	if len(granted) == 0 {
		return "no device node of an accelerator"
	}
	return strings.Join(granted, ", ")
}
