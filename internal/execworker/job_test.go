package execworker_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/execspec"
	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
)

// box is a worker of one program.
type box struct {
	supervisor.Conn
	t   *testing.T
	dir string // of the jobs
	n   int
}

// start runs the worker of spec, whose program is `sh -c script` unless it names one.
func start(t *testing.T, script string, spec execspec.Spec) *box {
	t.Helper()
	if spec.Command == nil {
		sh, err := exec.LookPath("sh")
		if err != nil {
			t.Skip("no sh")
		}
		spec.Command = []string{sh, "-c", script, "program"}
	}
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	argv := command(t, spec)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Stderr = ch.Files(), os.Stderr
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), ch.Env()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Open(context.Background(), supervisor.Hello{
		Instance: "i", Plugin: "p", Config: json.RawMessage(`{"voice":"anna"}`), Secrets: map[string]string{"KEY": "hidden"},
		Dirs: map[string]string{"data": "/data"}, Concurrent: 4, Limits: supervisor.Limits{MaxPayload: 1 << 20},
	}, func(supervisor.ConnEvent) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		<-conn.Done()
		_ = cmd.Wait()
		_ = ch.Close()
	})
	b := &box{Conn: conn, t: t, dir: t.TempDir()}
	if _, err := conn.Ready(b.ctx()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *box) ctx() context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	b.t.Cleanup(cancel)
	return c
}

// sink records a call.
type sink struct {
	mu       sync.Mutex
	chunks   []string
	logs     []string
	progress []supervisor.Progress
	first    chan struct{} // closed at the first progress
}

func newSink() *sink { return &sink{first: make(chan struct{})} }

func (s *sink) Chunk(_ uint64, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks = append(s.chunks, string(p))
}
func (s *sink) Log(r supervisor.LogRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, r.Stream+": "+r.Message)
}
func (s *sink) Progress(f float64, m string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.progress = append(s.progress, supervisor.Progress{Fraction: f, Message: m}); len(s.progress) == 1 {
		close(s.first)
	}
}
func (s *sink) CancelPhase(supervisor.CancelMode) {}

func (b *box) call(kwargs string) supervisor.Call {
	b.n++
	dir := filepath.Join(b.dir, strconv.Itoa(b.n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	return supervisor.Call{ID: "job" + strconv.Itoa(b.n), Attempt: 2, Kwargs: json.RawMessage(kwargs), Dir: dir}
}

func (b *box) run(call supervisor.Call) (string, *sink, error) {
	b.t.Helper()
	s := newSink()
	res, err := b.Execute(b.ctx(), call, s)
	return string(res.Payload), s, err
}

func (b *box) fails(call supervisor.Call, category, says string) *supervisor.CallError {
	b.t.Helper()
	_, _, err := b.run(call)
	var e *supervisor.CallError
	if !errors.As(err, &e) || e.Category != category || !strings.Contains(e.Message, says) {
		b.t.Fatalf("got %+v (%v), want %s: %s", e, err, category, says)
	}
	return e
}

func TestJob_ArgumentsNeverMeetAShell(t *testing.T) {
	t.Parallel()
	b := start(t, `for a; do printf '<%s>' "$a"; done`, execspec.Spec{
		Args: []execspec.Arg{{Text: "{kwargs.a}"}, {Group: []string{"-n", "{kwargs.n}"}}, {Text: "{kwargs.l...}"}, {Text: "{config.voice}"}}, Stdout: execspec.StdoutText,
	})
	got, _, err := b.run(b.call(`{"a":"$(touch /tmp/no) ; 'x' \"y\" *","l":["1 2","3"]}`))
	if err != nil || got != `"<$(touch /tmp/no) ; 'x' \"y\" *><1 2><3><anna>"` {
		t.Fatalf("%s %v", got, err)
	}
	if e := b.fails(b.call(`{"l":[]}`), "user_input", "kwargs.a is missing"); !slices.Equal(e.Fields, []string{"kwargs.a"}) {
		t.Fatalf("the fields are %v", e.Fields)
	}
	b.fails(b.call(`{"a":"-x","l":[]}`), "user_input", "begins with a dash")
	b.fails(supervisor.Call{ID: "t", Attempt: 1, Task: "speech", Method: "say"}, "user_input", "takes no task")
}

func TestJob_EnvironmentAndPlace(t *testing.T) {
	t.Parallel()
	b := start(t, `echo "$CJM_JOB_ID $CJM_JOB_ATTEMPT $CJM_JOB_STREAM $KEY ${CJM_WORKER_FD-none}"; test "$PWD" -ef "$CJM_JOB_DIR" && ls -A; cat`, execspec.Spec{Stdout: execspec.StdoutText})
	got, _, err := b.run(b.call(`{}`))
	if err != nil || got != `"job1 2 0 hidden none"` {
		t.Fatalf("%s %v", got, err)
	}
}

func TestJob_DirectoryThatASandboxHides(t *testing.T) {
	t.Parallel()
	b := start(t, `test "$PWD" -ef "$CJM_JOB_DIR" && echo ran`, execspec.Spec{Stdout: execspec.StdoutText})
	call := b.call(`{}`)
	call.Dir = "/no/such/directory"
	got, s, err := b.run(call)
	if err != nil || got != `"ran"` || len(s.logs) != 1 || !strings.Contains(s.logs[0], "cannot be used in this worker's sandbox") {
		t.Fatalf("%s %q %v", got, s.logs, err)
	}
}

func TestJob_Stdin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stdin  execspec.Stdin
		kwargs string
		want   string
	}{
		"none": {execspec.Stdin{}, `{}`, `""`},
		"json": {execspec.Stdin{JSON: true}, `{"a":1}`, `"{\"args\":[],\"kwargs\":{\"a\":1}}"`},
		"text": {execspec.Stdin{Text: "say: {kwargs.t}"}, `{"t":"ü"}`, `"say: ü"`},
		"file": {execspec.Stdin{File: "{kwargs.f}"}, `{"f":"in.txt"}`, `"from a file"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, `cat`, execspec.Spec{Stdin: c.stdin, Stdout: execspec.StdoutText})
			call := b.call(c.kwargs)
			if err := os.WriteFile(filepath.Join(call.Dir, "in.txt"), []byte("from a file"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, _, err := b.run(call); err != nil || got != c.want {
				t.Fatalf("%s %v", got, err)
			}
		})
	}
	b := start(t, `exit 0`, execspec.Spec{Stdin: execspec.Stdin{File: "{kwargs.f}"}, Stdout: execspec.StdoutText})
	b.fails(b.call(`{"f":"nothing.txt"}`), "user_input", "nothing.txt")
	// What is no file is refused before the program runs: a directory would be an
	// empty input, and nobody writes to the FIFO.
	odd := b.call(`{"f":"fifo"}`)
	if err := syscall.Mkfifo(filepath.Join(odd.Dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails(odd, "user_input", "fifo: it is no regular file")
	b.fails(b.call(`{"f":"."}`), "user_input", "no regular file")
	// A file that opens and cannot be read fails the job: its end is not the input's.
	if _, err := os.Stat("/proc/self/mem"); err == nil {
		b = start(t, `cat`, execspec.Spec{Stdin: execspec.Stdin{File: "/proc/self/mem"}, Stdout: execspec.StdoutText})
		b.fails(b.call(`{}`), "fatal", "cannot read what the program is fed with")
	}
	// A program that reads nothing of a large input is no error.
	b = start(t, `exit 0`, execspec.Spec{Stdin: execspec.Stdin{JSON: true}, Stdout: execspec.StdoutText})
	if _, _, err := b.run(b.call(`{"x":"` + strings.Repeat("x", 500_000) + `"}`)); err != nil {
		t.Fatal(err)
	}
}

func TestJob_Stdout(t *testing.T) {
	t.Parallel()
	const lines = `printf '{"a":1}\n\n2\n"x"'`
	for name, c := range map[string]struct {
		kind   string
		script string
		stream bool
		want   string
		chunks []string
	}{
		"json":            {execspec.StdoutJSON, `printf ' {"a": 1}\n'`, false, `{"a": 1}`, nil},
		"nothing":         {execspec.StdoutJSON, `true`, false, ``, nil},
		"text":            {execspec.StdoutText, `printf 'a "b"\n\n'`, false, `"a \"b\"\n"`, nil},
		"not UTF-8":       {execspec.StdoutText, `printf '\377x'`, false, `"` + "\ufffd" + `x"`, nil},
		"ndjson":          {execspec.StdoutNDJSON, lines, true, `{"chunks":3}`, []string{`{"a":1}`, "2", `"x"`}},
		"ndjson as list":  {execspec.StdoutNDJSON, lines, false, `[{"a":1},2,"x"]`, nil},
		"lines":           {execspec.StdoutLines, `printf 'a\n\nb'`, true, `{"chunks":3}`, []string{`"a"`, `""`, `"b"`}},
		"lines as list":   {execspec.StdoutLines, `true`, false, `[]`, nil},
		"log":             {execspec.StdoutLog, `echo hello`, false, ``, nil},
		"stream of a log": {execspec.StdoutLog, `echo hello`, true, ``, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, c.script, execspec.Spec{Stdout: c.kind})
			call := b.call(`{}`)
			call.Stream = c.stream
			got, s, err := b.run(call)
			if err != nil || got != c.want || !slices.Equal(s.chunks, c.chunks) {
				t.Fatalf("%s %q %v", got, s.chunks, err)
			}
			if c.kind == execspec.StdoutLog && !slices.Equal(s.logs, []string{"stdout: hello"}) {
				t.Fatalf("the log is %q", s.logs)
			}
		})
	}
	b := start(t, `echo 'not json'`, execspec.Spec{})
	b.fails(b.call(`{}`), "fatal", "standard output holds no JSON")
	b = start(t, `echo 1; echo oops; sleep 300`, execspec.Spec{Stdout: execspec.StdoutNDJSON})
	b.fails(b.call(`{}`), "fatal", "line 1 of standard output") // nothing was streamed
	b = start(t, `yes`, execspec.Spec{Stdout: execspec.StdoutText})
	b.fails(b.call(`{}`), "resource", "longer than the limit") // and the endless program is ended
}

func TestJob_ResultFile(t *testing.T) {
	t.Parallel()
	script := `case "$1" in
  write) printf '{"x":1}' > "$2";;
  link) ln -s /etc/hostname "$2";;
  fifo) mkfifo "$2";;
  big) head -c 2000000 /dev/zero > "$2";;
esac`
	spec := func(file, kind string) execspec.Spec {
		return execspec.Spec{Args: []execspec.Arg{{Text: "{kwargs.do}"}, {Text: "out"}}, Result: &execspec.Result{File: file, Type: kind}}
	}
	b := start(t, script, spec("{dir}/out", ""))
	if got, _, err := b.run(b.call(`{"do":"write"}`)); err != nil || got != `{"x":1}` {
		t.Fatalf("%s %v", got, err)
	}
	for do, says := range map[string]string{"link": "left no usable out", "fifo": "no regular file", "nothing": "no such file"} {
		b.fails(b.call(`{"do":"`+do+`"}`), "fatal", says)
	}
	b.fails(b.call(`{"do":"big"}`), "resource", "longer than the limit")

	b = start(t, script, spec("out", execspec.ResultPath))
	call := b.call(`{"do":"big"}`)
	got, _, err := b.run(call)
	if want := `{"bytes":2000000,"path":"` + call.Dir + `/out"}`; err != nil || got != want {
		t.Fatalf("%s (%v), want %s", got, err, want)
	}
	call = b.call(`{"do":"write"}`)
	call.Dir = ""
	b.fails(call, "fatal", "no directory")
	b = start(t, script, spec("{kwargs.where}", ""))
	b.fails(b.call(`{"do":"write","where":"../x"}`), "user_input", "not in the job's directory")
	b.fails(b.call(`{"do":"write","where":"/etc/passwd"}`), "user_input", "not in the job's directory")
}

func TestJob_Progress(t *testing.T) {
	t.Parallel()
	// What ffmpeg prints, with a bar that is drawn by carriage returns.
	b := start(t, `echo '  Duration: 00:01:40.00, start: 0' >&2; printf 'frame=1 time=00:00:25.00\rframe=2 time=00:00:50.00\r' >&2
echo 'CJM_PROGRESS is a word' >&2; echo plain >&2`, execspec.Spec{
		Stdout: execspec.StdoutLog, Progress: []execspec.Progress{{Pattern: `Duration: (?P<total>[0-9:.]+)`}, {Pattern: `time=(?P<done>[0-9:.]+)`}},
	})
	_, s, err := b.run(b.call(`{}`))
	if err != nil || len(s.progress) == 0 || s.progress[len(s.progress)-1].Fraction != 0.5 {
		t.Fatalf("progress: %+v %v", s.progress, err)
	}
	if !slices.Equal(s.logs, []string{"stderr: CJM_PROGRESS is a word", "stderr: plain"}) {
		t.Fatalf("the log: %q", s.logs)
	}
	b = start(t, `for i in 1 2 3 4; do echo "CJM_PROGRESS $i/10 step $i" >&2; done`, execspec.Spec{Stdout: execspec.StdoutText})
	_, s, err = b.run(b.call(`{}`))
	if want := (supervisor.Progress{Fraction: 0.4, Message: "step 4"}); err != nil || len(s.progress) == 0 || s.progress[len(s.progress)-1] != want {
		t.Fatalf("progress: %+v %v", s.progress, err)
	}
	for _, odd := range []string{"nan", "-7", "-inf"} {
		b = start(t, `echo "CJM_PROGRESS `+odd+` somewhere" >&2`, execspec.Spec{Stdout: execspec.StdoutText})
		if _, s, err = b.run(b.call(`{}`)); err != nil || len(s.progress) != 1 || s.progress[0] != (supervisor.Progress{Fraction: -1, Message: "somewhere"}) {
			t.Fatalf("%s: %+v %v", odd, s.progress, err)
		}
	}
	b = start(t, `echo '7 of 14'`, execspec.Spec{Stdout: execspec.StdoutLog, Progress: []execspec.Progress{{From: "stdout", Pattern: `^(?P<done>\d+) of`, Total: "{kwargs.n}"}}})
	if _, s, err := b.run(b.call(`{"n":28}`)); err != nil || len(s.progress) != 1 || s.progress[0].Fraction != 0.25 {
		t.Fatalf("%+v %v", s.progress, err)
	}
	if _, s, err := b.run(b.call(`{}`)); err != nil || len(s.progress) != 1 || s.progress[0].Fraction != -1 {
		t.Fatalf("without a total: %+v %v", s.progress, err)
	}
}

func TestJob_ExitCodes(t *testing.T) {
	t.Parallel()
	b := start(t, `echo 'first' >&2; echo 'cannot open it' >&2; test -z "$2" || echo "$2" >&2; test "$1" = kill && kill -SEGV $$; exit "$1"`, execspec.Spec{
		Args: []execspec.Arg{{Text: "{kwargs.code}"}, {Text: "{kwargs.say=}"}}, ExitCodes: map[string]string{"2": "user_input", "75": "transient"},
	})
	e := b.fails(b.call(`{"code":1}`), "fatal", "cannot open it (exit code 1)")
	if e.Traceback != "first\ncannot open it" || e.Type != "exit 1" || e.Retriable {
		t.Fatalf("%+v", e)
	}
	b.fails(b.call(`{"code":2}`), "user_input", "(exit code 2)")
	if e := b.fails(b.call(`{"code":75}`), "transient", "(exit code 75)"); !e.Retriable {
		t.Fatal("a transient error is not to be tried again")
	}
	b.fails(b.call(`{"code":"kill"}`), "fatal", "killed by SIGSEGV")
	e = b.fails(b.call(`{"code":2,"say":"CJM_ERROR {\"category\":\"resource\",\"message\":\"no voice left\",\"fields\":[\"text\"]}"}`), "resource", "no voice left")
	if !e.Retriable || !slices.Equal(e.Fields, []string{"text"}) {
		t.Fatalf("%+v", e)
	}
	b.fails(b.call(`{"code":1,"say":"CJM_ERROR no json"}`), "fatal", "CJM_ERROR no json")
}

// A program that ignores everything is ended within the interrupt phase, and its
// worker and the jobs beside it live on.
func TestJob_CancelEndsTheWholeGroup(t *testing.T) {
	t.Parallel()
	b := start(t, `trap '' INT TERM; sleep 300 & echo $! > child; echo 'CJM_PROGRESS -1 up' >&2; wait; sleep 300`, execspec.Spec{Stdout: execspec.StdoutText})
	call, s := b.call(`{}`), newSink()
	done := make(chan error, 1)
	go func() {
		_, err := b.Execute(b.ctx(), call, s)
		done <- err
	}()
	<-s.first
	for _, mode := range []supervisor.CancelMode{supervisor.CancelCooperative, supervisor.CancelInterrupt} {
		if err := b.Cancel(b.ctx(), call.ID, mode); err != nil {
			t.Fatal(err)
		}
	}
	var e *supervisor.CallError
	if err := <-done; !errors.As(err, &e) || !e.Cancelled {
		t.Fatalf("%+v %v", e, err)
	}
	raw, err := os.ReadFile(filepath.Join(call.Dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the program's child %d lives", pid)
		}
	}
	if _, err := b.Request(b.ctx(), "ping", nil); err != nil {
		t.Fatal(err)
	}
}

// A cancelled program that ends well has left a partial result.
func TestJob_CancelKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	b := start(t, `trap 'echo "\"half\""; exit 0' TERM; echo 'CJM_PROGRESS 0.5 up' >&2; sleep 300 & wait`, execspec.Spec{CancelSignal: "TERM"})
	call, s := b.call(`{}`), newSink()
	done := make(chan supervisor.Result, 1)
	go func() {
		res, err := b.Execute(b.ctx(), call, s)
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	<-s.first
	if err := b.Cancel(b.ctx(), call.ID, supervisor.CancelCooperative); err != nil {
		t.Fatal(err)
	}
	if res := <-done; !res.Cancelled || string(res.Payload) != `"half"` {
		t.Fatalf("%+v", res)
	}
}

// What a program leaves running is ended with it, and what escaped its group
// cannot keep the job open by holding its output.
func TestJob_LeftoversDoNotHoldTheJob(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("no setsid")
	}
	b := start(t, `sleep 300 & setsid sleep 3 & echo 1`, execspec.Spec{})
	begun := time.Now()
	if got, _, err := b.run(b.call(`{}`)); err != nil || got != "1" {
		t.Fatalf("%s %v", got, err)
	}
	if took := time.Since(begun); took > 2500*time.Millisecond {
		t.Fatalf("the job took %v", took)
	}
}

func TestWorker_SaysThatItsProgramIsNotThere(t *testing.T) {
	t.Parallel()
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	argv := command(t, execspec.Spec{Command: []string{"/no/such/program"}})
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Env = ch.Files(), append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), ch.Env()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Open(context.Background(), supervisor.Hello{}, func(supervisor.ConnEvent) {})
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Ready(context.Background())
	var e *supervisor.CallError
	if !errors.As(err, &e) || !strings.Contains(e.Message, "/no/such/program") {
		t.Fatalf("%v", err)
	}
	_ = cmd.Wait()
	<-conn.Done()
}
