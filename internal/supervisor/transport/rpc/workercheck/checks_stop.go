package workercheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// goneWithin is how soon a worker and its group must be gone after the end of
// the file: the daemon is dead then, and nobody else will end them.
const goneWithin = 2 * time.Second

// cancelled checks that a call ended because of a cancel.
func cancelled(f frame) error {
	if f.err != nil {
		if f.err.Code == wire.CodeCancelled {
			return nil
		}
		return fmt.Errorf("a cancelled call ended with error %d %q, want %d or a result with cancelled: true", f.err.Code, f.err.Message, wire.CodeCancelled)
	}
	var r struct {
		Cancelled bool `json:"cancelled"`
	}
	if err := json.Unmarshal(f.result, &r); err != nil || !r.Cancelled {
		return fmt.Errorf("a cancelled call ended with the result %s, want cancelled: true", f.result)
	}
	return nil
}

// beginWait starts a call that ends only by a cancel and, where the worker
// reports progress, waits until the plugin is in it.
func beginWait(ctx context.Context, s *session, job string, deaf bool) (id string, err error) {
	id, err = s.begin(ctx, job, false, fmt.Sprintf(`{"op":"wait","deaf":%v}`, deaf))
	if err != nil || !s.has("progress") {
		return id, err
	}
	return id, s.notified(ctx, "progress", job)
}

func checkPingDuringCall(ctx context.Context, s *session) (string, error) {
	id, err := beginWait(ctx, s, "j1", false)
	if err != nil {
		return "", err
	}
	var worst time.Duration
	for range 5 {
		d, err := ping(ctx, s)
		if err != nil {
			return "", err
		}
		worst = max(worst, d)
	}
	if len(s.kept) > 0 {
		return "", fmt.Errorf("the call that waits (request %s) ended by itself", id)
	}
	return fmt.Sprintf("five pings, the slowest after %v", worst.Round(time.Microsecond)), nil
}

func checkCancelUnknown(ctx context.Context, s *session) (string, error) {
	accepted, err := s.cancel(ctx, "nobody", "cooperative")
	if err == nil && accepted {
		err = errors.New("a cancel of a call that does not exist was accepted")
	}
	return "accepted: false", err
}

func checkCancelCooperative(ctx context.Context, s *session) (string, error) {
	id, err := beginWait(ctx, s, "j1", false)
	if err != nil {
		return "", err
	}
	begin := time.Now()
	accepted, err := s.cancel(ctx, "j1", "cooperative")
	if err != nil {
		return "", err
	}
	if !accepted {
		return "", errors.New("the cancel of a running call was not accepted")
	}
	f, _, err := s.answer(ctx, id)
	if err == nil {
		err = cancelled(f)
	}
	if err != nil {
		return "", err
	}
	took := time.Since(begin)
	f, _, err = s.execute(ctx, "j2", false, `{"op":"echo"}`)
	return fmt.Sprintf("the call ended after %v and the next one works", took.Round(time.Millisecond)), value(f, err, `{"args":[],"kwargs":{"op":"echo"}}`)
}

func checkCancelInterrupt(ctx context.Context, s *session) (string, error) {
	id, err := beginWait(ctx, s, "j1", true)
	if err != nil {
		return "", err
	}
	for _, mode := range []string{"cooperative", "interrupt"} {
		accepted, err := s.cancel(ctx, "j1", mode)
		if err != nil {
			return "", err
		}
		if !accepted {
			return "", fmt.Errorf("the %s cancel of a running call was not accepted", mode)
		}
	}
	f, _, err := s.answer(ctx, id)
	if err == nil {
		err = cancelled(f)
	}
	if err != nil {
		return "", err
	}
	f, _, err = s.execute(ctx, "j2", false, `{"op":"echo"}`)
	return "a call deaf to the cooperative cancel ended by the interrupt, and the next one works", value(f, err, `{"args":[],"kwargs":{"op":"echo"}}`)
}

func checkConcurrent(ctx context.Context, s *session) (string, error) {
	first, err := beginWait(ctx, s, "j1", false)
	if err != nil {
		return "", err
	}
	f, _, err := s.execute(ctx, "j2", false, `{"op":"echo"}`)
	if err := value(f, err, `{"args":[],"kwargs":{"op":"echo"}}`); err != nil {
		return "", fmt.Errorf("a second call beside one that waits: %w", err)
	}
	if _, err := s.cancel(ctx, "j1", "cooperative"); err != nil {
		return "", err
	}
	f, _, err = s.answer(ctx, first)
	if err == nil {
		err = cancelled(f)
	}
	return "one call ran and ended while another one waited", err
}

// checkPayload sends and receives so many bytes.
func checkPayload(n int) func(context.Context, *session) (string, error) {
	return func(ctx context.Context, s *session) (string, error) {
		begin := time.Now()
		f, _, err := s.execute(ctx, "j1", false, fmt.Sprintf(`{"op":"big","bytes":%d}`, n))
		if err != nil {
			return "", err
		}
		want := append(append([]byte{'"'}, bytes.Repeat([]byte("x"), n)...), '"')
		if f.err != nil || !bytes.Equal(bytes.TrimSpace(f.payload), want) {
			return "", fmt.Errorf("the result has %d bytes (%+v), want a string of %d", len(f.payload), f.err, n)
		}
		out := time.Since(begin)
		begin = time.Now()
		f, _, err = s.call(ctx, "execute", `{"job":"j2","attempt":1,"stream":false,"dir":""}`,
			append(append([]byte(`{"args":[`), want...), `],"kwargs":{"op":"echo"}}`...))
		if err != nil {
			return "", err
		}
		if f.err != nil || len(f.payload) < n || !bytes.Contains(f.payload, want) {
			return "", fmt.Errorf("the echo has %d bytes (%+v), want at least %d", len(f.payload), f.err, n)
		}
		return fmt.Sprintf("received in %v, echoed in %v", out.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond)), nil
	}
}

func checkPayloadOverLimit(ctx context.Context, s *session) (string, error) {
	f, _, err := s.execute(ctx, "j1", false, `{"op":"big","bytes":2097152}`)
	if err != nil {
		return "", err
	}
	if f.err == nil || f.err.Data.Category != "resource" {
		return "", fmt.Errorf("a result of 2 MiB under a limit of 1 MiB gave %+v, want an error of category resource", f.err)
	}
	_, err = ping(ctx, s)
	return fmt.Sprintf("refused by the worker itself: %q", f.err.Message), err
}

// spawn lets the plugin start a child of its own.
func spawn(ctx context.Context, s *session) (pid int, err error) {
	f, _, err := s.execute(ctx, "child", false, `{"op":"spawn"}`)
	switch {
	case err != nil:
		return 0, err
	case f.err != nil:
		return 0, skipped(fmt.Sprintf("the plugin cannot start a child: %s", f.err.Message))
	}
	if err := json.Unmarshal(f.payload, &pid); err != nil {
		return 0, fmt.Errorf("the result of spawn is %s, want a process id", wire.Excerpt(f.payload))
	}
	if !inGroup(pid, s.pgid) {
		return 0, fmt.Errorf("process %d, which spawn named, is not in the worker's group %d", pid, s.pgid)
	}
	return pid, nil
}

func checkSocketPrivate(ctx context.Context, s *session) (string, error) {
	pid, err := spawn(ctx, s)
	if err != nil {
		return "", err
	}
	if holds, err := holdsSocket(pid, s.inode); err != nil || holds {
		return "", fmt.Errorf("a program started by the plugin holds a copy of the socket: %v (%v)", holds, err)
	}
	if has, err := hasEnv(pid, "CJM_WORKER_FD"); err != nil || has {
		return "", fmt.Errorf("a program started by the plugin has CJM_WORKER_FD in its environment: %v (%v)", has, err)
	}
	return "a program started by the plugin has neither the socket nor its number", nil
}

// checkBroken sends bytes that break the protocol: the worker must end the
// connection and itself.
func checkBroken(what string, raw []byte) func(context.Context, *session) (string, error) {
	return func(ctx context.Context, s *session) (string, error) {
		if _, err := s.sock.Write(raw); err != nil {
			return "", err
		}
		begin := time.Now()
		if err := s.waitGroupGone(ctx, what); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s ended the worker after %v", what, time.Since(begin).Round(time.Millisecond)), nil
	}
}

func checkShutdown(ctx context.Context, s *session) (string, error) {
	f, _, err := s.call(ctx, "shutdown", `{}`, nil)
	if err != nil {
		return "", err
	}
	if f.err != nil {
		return "", fmt.Errorf("shutdown was answered with error %d %q", f.err.Code, f.err.Message)
	}
	if err := s.waitExit(ctx, "shutdown"); err != nil {
		return "", err
	}
	if st := s.cmd.ProcessState; st.ExitCode() != 0 {
		return "", fmt.Errorf("the worker ended with %v, want exit status 0", st)
	}
	return "answered, then exit status 0", nil
}

func checkEndOfFile(ctx context.Context, s *session) (string, error) {
	what := "the worker"
	if _, err := spawn(ctx, s); err == nil {
		what = "the worker and the program that its plugin had started"
	}
	return endOfFile(ctx, s, what)
}

func checkEndOfFileInCall(ctx context.Context, s *session) (string, error) {
	if _, err := beginWait(ctx, s, "j1", true); err != nil {
		return "", err
	}
	if _, err := ping(ctx, s); err != nil {
		return "", err
	}
	return endOfFile(ctx, s, "the worker, in the middle of a call,")
}

func endOfFile(ctx context.Context, s *session, what string) (string, error) {
	begin := time.Now()
	if err := s.sock.Close(); err != nil {
		return "", err
	}
	if err := s.waitGroupGone(ctx, "the end of the file"); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s had gone after %v", what, time.Since(begin).Round(time.Millisecond)), nil
}

// waitGroupGone waits until no process of the group is left.
func (s *session) waitGroupGone(ctx context.Context, why string) error {
	deadline := time.NewTimer(goneWithin)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond) // no event tells of a process group's end
	defer tick.Stop()
	for {
		left := members(s.pgid)
		if len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			_ = unix.Kill(-s.pgid, unix.SIGKILL)
			return fmt.Errorf("%d processes of the worker's group are left %v after %s: %v", len(left), goneWithin, why, left)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
