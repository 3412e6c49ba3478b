package cjmhttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/transporttest"
)

// box is one worker and the connection to it, without a supervisor.
type box struct {
	supervisor.Conn
	t    *testing.T
	proc *exec.Cmd
}

// open starts the launcher of a target.
func open(t *testing.T, tt transporttest.Target, change func(*supervisor.Hello, *exec.Cmd)) *box {
	t.Helper()
	ch, err := tt.Transport.Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	hello := supervisor.Hello{Module: tt.Module, Class: tt.Class, Config: json.RawMessage(`{"speed":1}`), Concurrent: 2}
	cmd := exec.Command(tt.Command[0], tt.Command[1:]...)
	cmd.Env = append(append([]string{"PATH=" + os.Getenv("PATH"), "PYTHONDONTWRITEBYTECODE=1"}, tt.Env...), ch.Env()...)
	cmd.ExtraFiles, cmd.SysProcAttr = ch.Files(), &syscall.SysProcAttr{Setsid: true}
	if change != nil {
		change(&hello, cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Open(context.Background(), hello, func(supervisor.ConnEvent) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close() // the launcher ends its group with the life line
		<-conn.Done()
		_ = cmd.Wait()
		_ = ch.Close()
	})
	return &box{Conn: conn, t: t, proc: cmd}
}

func (b *box) ctx() context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	b.t.Cleanup(cancel)
	return c
}

func (b *box) ready() supervisor.Ready {
	b.t.Helper()
	r, err := b.Ready(b.ctx())
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// sink keeps chunks and log lines.
type sink struct {
	mu     sync.Mutex
	chunks []string
	logs   []string
}

func (s *sink) Chunk(_ uint64, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks = append(s.chunks, string(p))
}
func (s *sink) Log(r supervisor.LogRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, r.Message)
}
func (s *sink) Progress(float64, string)          {}
func (s *sink) CancelPhase(supervisor.CancelMode) {}

func (b *box) call(call supervisor.Call) (string, *sink, error) {
	s := &sink{}
	res, err := b.Execute(b.ctx(), call, s)
	return string(res.Payload), s, err
}

func TestReady_TellsWhatIsServed(t *testing.T) {
	t.Parallel()
	first, typed := open(t, standIn(t, "first"), nil).ready(), open(t, standIn(t, "typed"), nil).ready()
	if slices.Contains(first.Capabilities, "task") || slices.Contains(first.Capabilities, "control") {
		t.Fatalf("the first release: %v", first.Capabilities)
	}
	for _, c := range []string{"task", "surface", "control", "prefetch", "reconfigure"} {
		if !slices.Contains(typed.Capabilities, c) {
			t.Fatalf("%s is missing: %v", c, typed.Capabilities)
		}
	}
	if typed.Name != "suite-plugin" || typed.Version != "1.2.3" || string(typed.Config) != `{"speed": 1}` || len(typed.Schema) == 0 {
		t.Fatalf("%+v", typed)
	}
}

// The second dialect is the first one under another name.
func TestLauncher_FindsTheDialect(t *testing.T) {
	t.Parallel()
	b := open(t, standIn(t, "substrate"), nil)
	if r := b.ready(); r.Runtime != "Capability Worker over HTTP" {
		t.Fatalf("%+v", r)
	}
	both := open(t, target(t, python(t), transporttest.Data("standin/common"), transporttest.Data("standin/typed"), transporttest.Data("standin/substrate")), nil)
	if r := both.ready(); r.Runtime != "Capability Worker over HTTP" { // the newer one serves a class that is of neither
		t.Fatalf("%+v", r)
	}
}

func TestRequest_EachOutcomeOfAHook(t *testing.T) {
	t.Parallel()
	first, typed := open(t, standIn(t, "first"), nil), open(t, standIn(t, "typed"), nil)
	first.ready()
	typed.ready()
	for method, want := range map[string]struct{ first, typed string }{
		"ping":          {"{}", "{}"},
		"schema":        {`"properties"`, `"properties"`},
		"config":        {`"speed"`, `"speed"`},
		"stats":         {`"pid"`, `"pid"`},
		"options":       {"not supported", `"slow"`},
		"surface":       {"not supported", `"execute"`},
		"prefetch":      {"not supported", "not supported"}, // 200, with a status that says so
		"enable":        {"not supported", "{}"},
		"disable":       {"not supported", "cannot let go"}, // 200, with a status that is an error
		"processes":     {"not supported", "not supported"}, // 501
		"system_status": {`"get_system_status"`, "not supported"},
		"release":       {"not supported", "not supported"},
	} {
		for b, want := range map[*box]string{first: want.first, typed: want.typed} {
			raw, err := b.Request(b.ctx(), method, nil)
			got := string(raw)
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, want) || errors.Is(err, supervisor.ErrNotSupported) != (want == "not supported") {
				t.Errorf("%s: %s (%v), want %s", method, raw, err, want)
			}
		}
	}
}

// An answer that looks like success and is none is followed by an initialise.
func TestConfigure_BelievesNobody(t *testing.T) {
	t.Parallel()
	b := open(t, standIn(t, "typed"), nil)
	b.ready()
	old := `{"speed":1}`
	for _, step := range []struct{ config, applied string }{
		{`{"speed":2,"reconfigure":"yes"}`, "reconfigured"},
		{`{"speed":3,"reconfigure":"lie"}`, "initialized"},
		{`{"speed":4}`, "initialized"}, // not_supported
	} {
		raw, err := b.Request(b.ctx(), "configure", json.RawMessage(`{"old":`+old+`,"new":`+step.config+`}`))
		if err != nil || string(raw) != `{"applied":"`+step.applied+`"}` {
			t.Fatalf("%s: %s %v", step.config, raw, err)
		}
		now, err := b.Request(b.ctx(), "config", nil)
		if want := strings.ReplaceAll(step.config, ",", ", "); err != nil || strings.ReplaceAll(string(now), ": ", ":") != want {
			t.Fatalf("%s is in force after %s (%v)", now, step.config, err)
		}
		old = step.config
	}
	var e *supervisor.CallError
	if _, err := b.Request(b.ctx(), "configure", json.RawMessage(`{"old":{},"new":{"refuse":"x"}}`)); !errors.As(err, &e) || !strings.Contains(e.Message, "refused: x") {
		t.Fatalf("%v", err)
	}
}

func TestExecute_Tasks(t *testing.T) {
	t.Parallel()
	b := open(t, standIn(t, "typed"), func(h *supervisor.Hello, _ *exec.Cmd) { h.Adapters = []string{"suite_adapter:SuiteAdapter"} })
	b.ready()
	got, s, err := b.call(supervisor.Call{ID: "j1", Task: "shout", Method: "say", Kwargs: json.RawMessage(`{"text":"hi"}`)})
	if err != nil || got != `{"__wire__": "shout", "data": {"said": "HI"}}` {
		t.Fatalf("%s %v", got, err)
	}
	if want := []string{`task_account {"task": "shout", "job": "j1", "actor": null}`}; !slices.Equal(s.logs, want) {
		t.Fatalf("the accounts are %q", s.logs)
	}
	_, s, err = b.call(supervisor.Call{ID: "j2", Task: "shout", Method: "say", Kwargs: json.RawMessage(`{"text":""}`), Envelope: json.RawMessage(` { "actor": "ada" } `)})
	if want := []string{`task_account {"task": "shout", "job": "j2", "actor": "ada"}`}; err != nil || !slices.Equal(s.logs, want) {
		t.Fatalf("with an envelope the accounts are %q (%v)", s.logs, err)
	}
	for name, call := range map[string]supervisor.Call{
		"unknown task":    {ID: "a", Task: "none", Method: "say"},
		"method alone":    {ID: "b", Method: "say"},
		"stream":          {ID: "c", Task: "shout", Method: "say", Stream: true},
		"bad envelope":    {ID: "d", Envelope: json.RawMessage(`{`)},
		"wrong arguments": {ID: "e", Task: "shout", Method: "say", Kwargs: json.RawMessage(`{"nope":1}`)},
	} {
		var e *supervisor.CallError
		if _, _, err := b.call(call); !errors.As(err, &e) || e.Category != "user_input" || e.Retriable {
			t.Errorf("%s: %+v (%v)", name, e, err)
		}
	}
	first := open(t, standIn(t, "first"), nil)
	first.ready()
	var e *supervisor.CallError
	if _, _, err := first.call(supervisor.Call{ID: "a", Task: "shout", Method: "say"}); !errors.As(err, &e) || e.Category != "user_input" {
		t.Fatalf("a task for a worker without: %v", err)
	}
}

// In the first release a chunk may look like the error line. Only the last one is.
func TestStream_ErrorLinesOfBothAges(t *testing.T) {
	t.Parallel()
	for _, age := range []string{"first", "typed"} {
		b := open(t, standIn(t, age), nil)
		b.ready()
		look := `{"error":"just data"}`
		_, s, err := b.call(supervisor.Call{ID: "a", Stream: true, Kwargs: json.RawMessage(`{"op":"yields","values":[` + look + `,1,` + look + `,{"error":1},2]}`)})
		if err != nil || len(s.chunks) != 5 {
			t.Fatalf("%s: %q %v", age, s.chunks, err)
		}
		_, s, err = b.call(supervisor.Call{ID: "b", Stream: true, Kwargs: json.RawMessage(`{"op":"yields","values":[` + look + `],"fail":"out of luck"}`)})
		var e *supervisor.CallError
		if !errors.As(err, &e) || e.Message != "out of luck" || len(s.chunks) != 1 {
			t.Fatalf("%s: %q %v", age, s.chunks, err)
		}
		_, s, err = b.call(supervisor.Call{ID: "c", Stream: true, Kwargs: json.RawMessage(`{"op":"yields","values":[1],"nan":true}`)})
		if !errors.As(err, &e) || !strings.Contains(e.Message, "chunk 2 is no JSON") || len(s.chunks) != 1 {
			t.Fatalf("%s: %q %v", age, s.chunks, err)
		}
		got, _, err := b.call(supervisor.Call{ID: "d"})
		if err != nil || got != `{"args": [], "kwargs": {}}` {
			t.Fatalf("%s: after it: %s %v", age, got, err)
		}
	}
}

func TestExecute_ErrorsAreSorted(t *testing.T) {
	t.Parallel()
	b := open(t, standIn(t, "typed"), nil)
	b.ready()
	for raise, want := range map[string]string{
		"KeyError": "user_input", "RuntimeError": "fatal", "MemoryError": "oom", "TimeoutError": "timeout", "SuiteCancelledError": "cancelled",
	} {
		_, _, err := b.call(supervisor.Call{ID: raise, Kwargs: json.RawMessage(`{"op":"raises","name":"` + raise + `"}`)})
		var e *supervisor.CallError
		if !errors.As(err, &e) || e.Category != want || e.Category == "user_input" && e.Retriable {
			t.Errorf("%s: %+v (%v)", raise, e, err)
		}
	}
	_, _, err := b.call(supervisor.Call{ID: "nan", Kwargs: json.RawMessage(`{"op":"not_a_number"}`)})
	var e *supervisor.CallError
	if !errors.As(err, &e) || e.Category != "fatal" || !strings.Contains(e.Message, "could not make an answer") {
		t.Fatalf("NaN: %v", err)
	}
}

// Secrets come over the socket and are in no file that others can read.
func TestLauncher_KeepsSecrets(t *testing.T) {
	t.Parallel()
	b := open(t, standIn(t, "typed"), func(h *supervisor.Hello, _ *exec.Cmd) { h.Secrets = map[string]string{"API_KEY": "s3cret"} })
	r := b.ready()
	got, _, err := b.call(supervisor.Call{ID: "a", Kwargs: json.RawMessage(`{"op":"environ","name":"API_KEY"}`)})
	if err != nil || got != `"s3cret"` {
		t.Fatalf("%s %v", got, err)
	}
	for _, file := range []string{"environ", "cmdline"} {
		raw, err := os.ReadFile("/proc/" + strconv.Itoa(r.PID) + "/" + file)
		if err != nil || strings.Contains(string(raw), "s3cret") {
			t.Fatalf("%s: %v", file, err)
		}
	}
	for _, name := range []string{"CJM_HTTP_FD", "CJM_HELLO_FD"} {
		if got, _, err := b.call(supervisor.Call{ID: name, Kwargs: json.RawMessage(`{"op":"environ","name":"` + name + `"}`)}); err != nil || got != "null" {
			t.Fatalf("%s is %s (%v)", name, got, err)
		}
	}
}

// The end of the life line is the end of the daemon: the worker does not outlive it.
func TestLauncher_EndsWithTheDaemon(t *testing.T) {
	t.Parallel()
	b := open(t, standIn(t, "first"), nil)
	b.ready()
	done := make(chan error, 1)
	go func() {
		_, _, err := b.call(supervisor.Call{ID: "a", Kwargs: json.RawMessage(`{"op":"sleep","seconds":60}`)})
		done <- err
	}()
	_ = b.Close()
	var lost *supervisor.ConnLostError
	if err := <-done; err != nil && !errors.As(err, &lost) {
		t.Fatal(err)
	}
	begun := time.Now()
	_ = b.proc.Wait()
	if took := time.Since(begun); took > 5*time.Second {
		t.Fatalf("the worker went on for %v", took)
	}
}

func TestLauncher_SaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		target transporttest.Target
		change func(*supervisor.Hello, *exec.Cmd)
		says   string
	}{
		"no base library": {target(t, python(t)), nil, "has no HTTP worker"},
		"too old":         {standIn(t, "first"), func(h *supervisor.Hello, _ *exec.Cmd) { h.Adapters = []string{"a:B"} }, "too old for task adapters"},
		"no class":        {standIn(t, "typed"), func(h *supervisor.Hello, _ *exec.Cmd) { h.Class = "Nope" }, "Nope"},
	} {
		var stderr strings.Builder
		b := open(t, c.target, func(h *supervisor.Hello, cmd *exec.Cmd) {
			if c.change != nil {
				c.change(h, cmd)
			}
			cmd.Stderr = &stderr
		})
		var lost *supervisor.ConnLostError
		if _, err := b.Ready(b.ctx()); !errors.As(err, &lost) {
			t.Errorf("%s: %v", name, err)
		}
		if _ = b.proc.Wait(); !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%s: %s", name, &stderr)
		}
	}
}
