package tree

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// guard keeps a guardian process alive. The guardian holds the read end of a
// pipe whose only write end is ours: it sees end of file when this process dies,
// however that happens, and kills the cgroup.
type guard struct {
	h    *Host
	base string

	mu      sync.Mutex
	life    *os.File // guarded by mu; write end of the running guardian's pipe
	closing bool     // guarded by mu
	stop    chan struct{}
	done    chan struct{}
}

func startGuard(h *Host, base string) (*guard, error) {
	g := &guard{h: h, base: base, stop: make(chan struct{}), done: make(chan struct{})}
	cmd, err := g.start()
	if err != nil {
		return nil, err
	}
	go g.keep(cmd)
	return g, nil
}

func (g *guard) start() (*exec.Cmd, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start the guardian: %w", err)
	}
	defer r.Close()
	cmd := g.h.helper(VerbGuardian, "--cgroup", g.base)
	cmd.Stdin = r
	// Its own session: a ^C at the terminal or a kill of our group must not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := g.h.spawn.start(cmd); err != nil {
		w.Close()
		return nil, fmt.Errorf("cannot start the guardian: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.life = w
	return cmd, nil
}

// keep waits for the guardian and starts another when somebody ended it.
func (g *guard) keep(cmd *exec.Cmd) {
	defer close(g.done)
	for {
		err := cmd.Wait()
		g.mu.Lock()
		g.life.Close()
		closing := g.closing
		g.mu.Unlock()
		if closing {
			return
		}
		g.h.o.Log.Warn("the guardian of the workers ended; starting another", zap.Error(err))
		for {
			if cmd, err = g.start(); err == nil {
				break
			}
			g.h.o.Log.Error("workers are without a guardian", zap.Error(err))
			select {
			case <-g.stop:
				return
			case <-time.After(time.Second):
			}
		}
		g.mu.Lock()
		if g.closing { // close came between and closed the old pipe
			g.life.Close()
		}
		g.mu.Unlock()
	}
}

// close lets the guardian see end of file and waits for it.
func (g *guard) close() error {
	g.mu.Lock()
	g.closing = true
	close(g.stop)
	g.life.Close()
	g.mu.Unlock()
	<-g.done
	return nil
}
