package envs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// killGrace is what a tool gets to put its things away after Ctrl-C.
const killGrace = 5 * time.Second

// StepError says that a tool failed. Tail holds its last lines.
type StepError struct {
	Step    string
	Program string
	Code    int // exit code, -1 when it was killed or could not be started
	Tail    []string
	Network bool // the words of the tool are those of a network that failed
	cause   error
}

func (e *StepError) Error() string {
	s := fmt.Sprintf("cannot %s: ", e.Step)
	switch {
	case e.Code > 0:
		s += fmt.Sprintf("%s ended with code %d", e.Program, e.Code)
	default:
		s += e.cause.Error()
	}
	if e.Network {
		s += " (the network failed)"
	}
	return s
}

func (e *StepError) Unwrap() error { return e.cause }

// steps runs the tools of one environment, one after the other. Everything they
// print goes to log; line gets each line as it comes. Used by one goroutine.
type steps struct {
	env  []string
	dir  string
	log  io.Writer
	line func(string)
}

// run starts a program without a shell, in a process group of its own, and
// waits until it and its group are gone. *StepError.
func (s *steps) run(ctx context.Context, step string, argv []string, more ...string) error {
	fmt.Fprintf(s.log, "\n$ %s\n", strings.Join(argv, " "))
	watch := &watcher{to: s.log, line: s.line}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = s.dir, append(slices.Clone(s.env), more...)
	cmd.Stdout, cmd.Stderr = watch, watch
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killGrace
	err := cmd.Run()
	if cmd.Process != nil {
		// Whatever the program left in its group writes into a directory that is
		// about to be removed.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	watch.flush()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fail := &StepError{Step: step, Program: filepath.Base(argv[0]), Code: -1, Tail: watch.tail, Network: watch.network, cause: err}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		fail.Code = exit.ExitCode()
	}
	fmt.Fprintf(s.log, "%v\n", err)
	return fail
}

// withRetries runs what talks to the network. Only a failure of the network is
// tried again: anything else fails the same way every time.
func withRetries(ctx context.Context, waits []time.Duration, told func(attempt int, wait time.Duration), run func() error) error {
	for attempt := 0; ; attempt++ {
		err := run()
		var fail *StepError
		if err == nil || attempt >= len(waits) || !errors.As(err, &fail) || !fail.Network {
			return err
		}
		told(attempt+1, waits[attempt])
		timer := time.NewTimer(waits[attempt])
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// networkWords are how pip, uv, git and conda say that the network failed;
// their exit codes do not tell it from a package that does not exist.
var networkWords = regexp.MustCompile(`(?i)connection (?:reset|refused|aborted|broken|closed|error|timed out)|connect error|could not connect|` +
	`timed out|ReadTimeout|IncompleteRead|ProtocolError|error sending request|error decoding response body|end of file before message|unexpected (?:eof|end of file)|` +
	`network is unreachable|temporary failure in name resolution|could not resolve host|dns error|failed to lookup address|no route to host|` +
	`CondaHTTPError|HTTP (?:error |status server error \(|code )?\(?(?:429|50[0234])|remote end closed|early EOF|RPC failed|SSL.*(?:EOF|handshake)`)

const (
	tailLines   = 12
	maxLogLine  = 4 << 10
	maxPieceLen = 64 << 10
)

// watcher splits the output of a tool into lines and keeps the last of them.
// exec calls Write from one goroutine at a time.
type watcher struct {
	to      io.Writer
	line    func(string)
	part    []byte
	tail    []string
	network bool
	failed  error // of the log; told once, by the last flush
}

func (w *watcher) Write(p []byte) (int, error) {
	if _, err := w.to.Write(p); err != nil && w.failed == nil {
		w.failed = err // a full disk ends the log, not the installation
	}
	w.part = append(w.part, p...)
	for {
		i := bytes.IndexAny(w.part, "\r\n")
		if i < 0 {
			break
		}
		w.take(w.part[:i])
		w.part = w.part[i+1:]
	}
	if len(w.part) > maxPieceLen {
		w.take(w.part)
		w.part = nil
	}
	return len(p), nil
}

func (w *watcher) flush() {
	w.take(w.part)
	w.part = nil
	if w.failed != nil {
		w.tail = append(w.tail, "the log could not be written: "+w.failed.Error())
	}
}

func (w *watcher) take(raw []byte) {
	s := strings.TrimSpace(string(raw[:min(len(raw), maxLogLine)]))
	if s == "" {
		return
	}
	w.network = w.network || networkWords.MatchString(s)
	w.tail = append(w.tail, s)
	if over := len(w.tail) - tailLines; over > 0 {
		w.tail = slices.Delete(w.tail, 0, over)
	}
	if w.line != nil {
		w.line(s)
	}
}
