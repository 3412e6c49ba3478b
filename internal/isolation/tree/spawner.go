package tree

import (
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// spawner starts processes from one goroutine that is locked to its thread for
// as long as the Host lives: the kernel sends a child its death signal when the
// *thread* that made it ends, and no_new_privs is a property of that thread,
// inherited by what it starts. The zero value works.
type spawner struct {
	noNewPrivs bool

	mu     sync.Mutex
	work   chan func() // guarded by mu; nil before first use
	done   chan struct{}
	setup  error // why no_new_privs could not be set; guarded by mu
	closed bool
}

func (s *spawner) start(cmd *exec.Cmd) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("cannot start %s: the isolation host is closed", cmd.Path)
	}
	if s.work == nil {
		s.work, s.done = make(chan func()), make(chan struct{})
		ready := make(chan error)
		go s.loop(ready)
		s.setup = <-ready
	}
	work, err := s.work, s.setup
	s.mu.Unlock()
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	work <- func() { result <- cmd.Start() }
	return <-result
}

func (s *spawner) loop(ready chan<- error) {
	// Never unlocked: the thread ends with this goroutine and its setting with it.
	runtime.LockOSThread()
	defer close(s.done)
	var err error
	if s.noNewPrivs {
		if e := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); e != nil {
			err = fmt.Errorf("cannot set no_new_privs: %w", e)
		}
	}
	ready <- err
	for f := range s.work {
		f()
	}
}

// close ends the thread. Nobody may be in start.
func (s *spawner) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.work != nil {
		close(s.work)
		<-s.done
	}
}

// cleanEnv drops what belongs to the daemon's own service and adds the marker.
func cleanEnv(env []string, marker string) []string {
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		key, _, _ := strings.Cut(e, "=")
		return key == "NOTIFY_SOCKET" || key == markerKey ||
			strings.HasPrefix(key, "WATCHDOG_") || strings.HasPrefix(key, "LISTEN_")
	})
	return append(out, marker)
}
