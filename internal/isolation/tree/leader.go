package tree

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// leader is the process a sandbox was started with, when it is our own child.
type leader struct {
	mu  sync.Mutex
	cmd *exec.Cmd      // guarded by mu; nil before Start
	id  proc.ID        // guarded by mu
	own isolation.Fact // guarded by mu; that it leads a session of its own
}

func (l *leader) set(cmd *exec.Cmd) {
	l.mu.Lock()
	l.cmd = cmd
	l.mu.Unlock()
	id := proc.ID{PID: cmd.Process.Pid}
	if s, err := proc.Read(id.PID); err == nil {
		id = s.ID()
	}
	l.begin(id)
}

// begin notes which process it is, and reads back that it has its own session.
func (l *leader) begin(id proc.ID) {
	sid, err := unix.Getsid(id.PID)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	l.own = isolation.Fact{Mechanism: "session", Requested: true, InForce: err == nil && id.PID != 0 && sid == id.PID, VerifiedBy: "getsid"}
	if !l.own.InForce {
		l.own.Detail = fmt.Sprintf("session %d: %v", sid, err)
	}
}

func (l *leader) session() isolation.Fact {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own
}

// PID of the leader, 0 before Start.
func (l *leader) PID() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id.PID
}

// Wait reaps the leader.
func (l *leader) Wait() (isolation.ExitStatus, error) {
	l.mu.Lock()
	cmd := l.cmd
	l.mu.Unlock()
	if cmd == nil {
		return isolation.ExitStatus{}, errors.New("cannot wait: nothing was started")
	}
	return exitStatus(cmd.Wait())
}

func exitStatus(err error) (isolation.ExitStatus, error) {
	var ee *exec.ExitError
	switch {
	case err == nil:
		return isolation.ExitStatus{}, nil
	case !errors.As(err, &ee):
		return isolation.ExitStatus{}, fmt.Errorf("cannot wait for the process: %w", err)
	}
	ws, ok := ee.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return isolation.ExitStatus{Signal: ws.Signal()}, nil
	}
	return isolation.ExitStatus{Code: ee.ExitCode()}, nil
}

// Signal goes to the leader; the pidfd inside os.Process guards against reuse.
func (l *leader) Signal(sig syscall.Signal) error {
	l.mu.Lock()
	id := l.id
	l.mu.Unlock()
	if id.PID == 0 {
		return nil
	}
	return proc.Signal(id, sig)
}

func (l *leader) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cmd = nil
}
