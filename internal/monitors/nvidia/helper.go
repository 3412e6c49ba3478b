package nvidia

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/accel"
)

// Between the daemon and its helper: the daemon writes a newline when a sample
// is due, the helper answers with one line of JSON. It ends when its input does,
// so it never outlives the daemon, and after an answer that is an error. Both
// are one binary, so the lines have no version.

// Verb starts the helper: "cjmd monitor-helper nvidia".
const Verb = "monitor-helper"

// SelfHelper is the command line that runs this very program as helper, also
// after its file was replaced by another version.
func SelfHelper() []string { return []string{"/proc/self/exe", Verb, Name} }

// Dispatch runs the helper when args (os.Args[1:]) ask for it. ok is false, and
// nothing was done, when they do not. main, or TestMain, calls it first.
func Dispatch(args []string) (code int, ok bool) {
	if len(args) != 2 || args[0] != Verb || args[1] != Name {
		return 0, false
	}
	return Main(Options{}, os.Stdin, os.Stdout), true
}

// answer is one line of the helper.
type answer struct {
	Reading     accel.Reading
	Error       string `json:",omitempty"`
	Unsupported bool   `json:",omitempty"`
}

// Main is the helper's side: it answers on out until in ends, and returns the
// exit code of the process. When in ends during a call of the driver that
// hangs, it ends the process itself.
func Main(o Options, in io.Reader, out io.Writer) int {
	due := make(chan struct{}, 1)
	go func() { // lives as long as the process; never waits for the other, which may hang
		for r := bufio.NewReader(in); ; {
			if _, err := r.ReadByte(); err != nil {
				os.Exit(0)
			}
			select {
			case due <- struct{}{}:
			default: // one is asked for already
			}
		}
	}()
	o = o.withDefaults()
	s, err := openSession(&o)
	enc := json.NewEncoder(out)
	for range due {
		var a answer
		if err == nil {
			a.Reading, err = s.read(context.Background())
		}
		if err != nil {
			a = answer{Error: err.Error(), Unsupported: errors.Is(err, monitors.ErrUnsupported)}
		}
		if enc.Encode(a) != nil || err != nil {
			return 1
		}
	}
	return 0
}

// Times a helper is given to end: by itself once its input ended, and killed.
const (
	politeEnd = 500 * time.Millisecond
	forcedEnd = 2 * time.Second
)

// helper is a source in another process.
type helper struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan answer
	closing chan struct{}
	gone    chan struct{} // closed when the process is gone and err is set
	err     error         // how it ended
	said    *opening
}

func startHelper(ctx context.Context, command []string) (*helper, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := &helper{answers: make(chan answer), closing: make(chan struct{}), gone: make(chan struct{}), said: &opening{}}
	h.cmd = exec.Command(command[0], command[1:]...)
	h.cmd.Stderr = h.said
	h.cmd.WaitDelay = time.Second
	// Its own group: the terminal's Ctrl-C is for the daemon, which ends it.
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("cannot start the nvidia helper: %w", err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start the nvidia helper: %w", err)
	}
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the nvidia helper: %w", err)
	}
	go h.follow(out) // ends with the process; close waits for it
	return h, nil
}

// follow passes answers on until the process ends, and reaps it.
func (h *helper) follow(out io.Reader) {
	defer close(h.gone)
	for dec := json.NewDecoder(out); ; {
		var a answer
		if err := dec.Decode(&a); err != nil {
			break
		}
		select {
		case h.answers <- a:
		case <-h.closing:
		}
	}
	h.err = h.cmd.Wait()
}

func (h *helper) read(ctx context.Context) (accel.Reading, error) {
	if _, err := h.in.Write([]byte{'\n'}); err != nil {
		select { // how it ended says more than the broken pipe
		case <-h.gone:
			return accel.Reading{}, h.fault()
		case <-time.After(forcedEnd):
			return accel.Reading{}, fmt.Errorf("cannot ask the nvidia helper: %w", err)
		}
	}
	select {
	case a := <-h.answers:
		switch {
		case a.Unsupported:
			return accel.Reading{}, &remoteError{text: a.Error, is: monitors.ErrUnsupported}
		case a.Error != "":
			return accel.Reading{}, &remoteError{text: a.Error}
		}
		return a.Reading, nil
	case <-h.gone:
		return accel.Reading{}, h.fault()
	case <-ctx.Done():
		return accel.Reading{}, ctx.Err()
	}
}

// fault says how the process ended; call it once it is gone.
func (h *helper) fault() error {
	how := "it exited"
	if h.err != nil {
		how = h.err.Error()
	}
	if said := h.said.String(); said != "" {
		how += ": " + said
	}
	return fmt.Errorf("cannot read the NVIDIA driver: its helper process ended (%s)", how)
}

// close ends the process, by force if need be. A process that hangs inside the
// kernel cannot be ended: it is told, and reaped whenever it lets go.
func (h *helper) close() error {
	close(h.closing)
	_ = h.in.Close() // it may have ended before
	if h.within(politeEnd) {
		return nil
	}
	_ = syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL) // not reaped yet, so the number is still its own
	if h.within(forcedEnd) {
		return nil
	}
	return fmt.Errorf("cannot end the nvidia helper (process %d): it hangs in a call of the driver", h.cmd.Process.Pid)
}

func (h *helper) within(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-h.gone:
		return true
	case <-t.C:
		return false
	}
}

// remoteError is an error that crossed from the helper, as text.
type remoteError struct {
	text string
	is   error // nil: nothing that callers decide by
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// opening keeps the first words of what was written to it: the dynamic linker's
// complaint, or the first line of a crash, which says its cause.
type opening struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

const openingSize = 300

func (o *opening) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b[:min(len(b), openingSize-len(o.text))]...)
	return len(b), nil
}

// String is the first line that is not empty.
func (o *opening) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	line, _, _ := strings.Cut(strings.TrimSpace(string(o.text)), "\n")
	return line
}
