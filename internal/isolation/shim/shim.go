// Package shim is the small process between the daemon and a worker where there
// is no cgroup to end a tree with: it starts the worker as its child, reaps what
// the tree leaves, tells the daemon how the worker ended, and ends the tree when
// the daemon is gone. As init of a PID namespace the kernel does that for it; as
// a subreaper it runs the kill loop.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation/proc"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

// Main runs the hidden verb "worker-shim" and returns the exit code.
func Main(args []string) int {
	fs := flag.NewFlagSet(tree.VerbShim, flag.ContinueOnError)
	planFD := fs.Int("plan", -1, "descriptor of the plan pipe")
	statusFD := fs.Int("status", -1, "descriptor of the receipt pipe")
	probe := fs.Bool("probe", false, "wait for end of file on standard input")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *probe {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return 0
	}
	if *planFD < 3 || *statusFD < 3 {
		fmt.Fprintln(os.Stderr, "worker-shim is started by cjmd, with a plan")
		return 2
	}
	// The death signal of the worker follows the thread that started it.
	runtime.LockOSThread()
	unix.CloseOnExec(*planFD)
	unix.CloseOnExec(*statusFD)
	life := os.NewFile(uintptr(*planFD), "plan")
	status := json.NewEncoder(os.NewFile(uintptr(*statusFD), "status"))
	dec := json.NewDecoder(life)
	var p tree.Plan
	if err := dec.Decode(&p); err != nil {
		return 1 // the daemon died before it could say anything
	}
	pid, err := begin(p, status)
	if err != nil {
		_ = status.Encode(tree.Receipt{Error: err.Error()})
		return 1
	}
	// From now on only SIGKILL, or the end of the tree, ends the shim.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	_ = status.Encode(tree.Receipt{Started: pid})
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, io.MultiReader(dec.Buffered(), life))
		endTree(p)
	}()
	return reap(p, pid, status)
}

// begin makes the surroundings and starts the worker with the descriptors it
// was promised, then gives up its own copies of them.
func begin(p tree.Plan, status *json.Encoder) (int, error) {
	if p.Strategy == tree.PIDNS && os.Getpid() != 1 {
		return 0, errors.New("the shim is not the init of a PID namespace")
	}
	var user *syscall.Credential
	switch {
	case p.Box != nil:
		facts, err := enter(p.Box)
		if err != nil {
			return 0, err
		}
		if err := status.Encode(tree.Receipt{Facts: facts}); err != nil {
			return 0, err
		}
		if p.Box.UID != 0 {
			user = &syscall.Credential{Uid: uint32(p.Box.UID), Gid: uint32(p.Box.GID)}
		}
	case p.Strategy == tree.PIDNS:
		if err := ownProc(); err != nil {
			if err := status.Encode(tree.Receipt{NoProc: err.Error()}); err != nil {
				return 0, err
			}
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("cannot drop capabilities: %w", err)
		}
	case p.Strategy == tree.Subreaper:
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("cannot become a subreaper: %w", err)
		}
	}
	attr := &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: &syscall.SysProcAttr{Setsid: true, Credential: user}}
	if p.DeathSig {
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	for fd := range p.Files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(p.Path, p.Args, attr)
	if err != nil {
		return 0, err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	for fd := range p.Files {
		if fd < 3 && err == nil {
			_ = unix.Dup3(null, fd, 0)
		} else {
			_ = unix.Close(fd)
		}
	}
	return pid, nil
}

// ownProc gives the namespace a /proc that shows its own processes.
func ownProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	return nil
}

// reap collects the tree. An init leaves with its worker, and the kernel ends
// the rest; a subreaper stays until nothing is left below it.
func reap(p tree.Plan, worker int, status *json.Encoder) int {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0 // no child is left
		case pid != worker:
			continue
		}
		r := tree.Receipt{Exited: true, Code: ws.ExitStatus()}
		if ws.Signaled() {
			r.Code, r.Signal = 0, int(ws.Signal())
		}
		_ = status.Encode(r) // nobody reads it when the daemon is gone
		if p.Strategy == tree.PIDNS {
			return 0
		}
	}
}

// endTree is what follows the daemon's death.
func endTree(p tree.Plan) {
	if p.Strategy == tree.PIDNS {
		os.Exit(0)
	}
	// It never gives up: there is nobody left to report to.
	_, _ = proc.KillAll(context.Background(), func(t proc.Table) []proc.Stat { return t.Below(os.Getpid()) })
}
