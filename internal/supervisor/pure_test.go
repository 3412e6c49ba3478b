package supervisor

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/isolation"
)

func TestRestart_DelaysDoubleUpToAMinuteAndThenItGivesUp(t *testing.T) {
	p := DefaultRestart()
	p.MaxFailures = 10
	at := time.Unix(0, 0)
	var failures []time.Time
	for i, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute, time.Minute} {
		failures = append(failures, at)
		for jitter, factor := range map[float64]float64{0: 1, 1: 1.2, -1: 0.8} {
			got, ok := p.Next(failures, jitter)
			if d := got - time.Duration(float64(want)*factor); !ok || d > time.Microsecond || d < -time.Microsecond {
				t.Errorf("failure %d, jitter %v: %v, %v", i+1, jitter, got, ok)
			}
		}
	}
	if _, ok := p.Next(append(failures, at), 0); ok {
		t.Error("does not give up")
	}
	if d := DefaultRestart(); d.Forget(59*time.Second) || !d.Forget(time.Minute) || d.MaxFailures != 5 {
		t.Error("default policy")
	}
}

func TestStates_TableIsClosedAndEveryStateIsReachedAndLeft(t *testing.T) {
	rows := map[State]bool{}
	for _, r := range stateTable {
		rows[r.state] = true
		if len(r.to) == 0 || r.sentence == "" {
			t.Errorf("%s: %+v", r.state, r)
		}
	}
	seen, todo := map[State]bool{}, []State{Stopped}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if seen[s] {
			continue
		}
		seen[s] = true
		for _, r := range stateTable {
			if r.state == s {
				todo = append(todo, r.to...)
			}
		}
	}
	for s := range seen {
		if !rows[s] {
			t.Errorf("%s has no row", s)
		}
	}
	if len(seen) != len(stateTable) {
		t.Errorf("reached %d of %d states", len(seen), len(stateTable))
	}
	if d := StateDiagram(); !strings.Contains(d, "killing --> stopped") {
		t.Error(d)
	}
}

func TestClassify_OnlyFromEvidence(t *testing.T) {
	oom := func(int, time.Time) bool { return true }
	no := func(int, time.Time) bool { return false }
	for name, c := range map[string]struct {
		status isolation.ExitStatus
		end    ending
		kills  int64
		kernel func(int, time.Time) bool
		want   ExitKind
	}{
		"clean":                     {kernel: oom, want: ExitOK},
		"code":                      {status: isolation.ExitStatus{Code: 3}, kernel: oom, want: ExitError},
		"segfault":                  {status: isolation.ExitStatus{Signal: syscall.SIGSEGV}, kernel: oom, want: ExitSignal},
		"kill without evidence":     {status: isolation.ExitStatus{Signal: syscall.SIGKILL}, kernel: no, want: ExitSignal},
		"kill with evidence":        {status: isolation.ExitStatus{Signal: syscall.SIGKILL}, kernel: oom, want: ExitOOMSystem},
		"own cgroup's OOM":          {status: isolation.ExitStatus{Signal: syscall.SIGKILL}, kills: 1, kernel: no, want: ExitOOMWorker},
		"killed by us":              {status: isolation.ExitStatus{Signal: syscall.SIGKILL}, end: ending{byUs: true}, kernel: oom, want: ExitKilledByUs},
		"stall":                     {status: isolation.ExitStatus{Signal: syscall.SIGKILL}, end: ending{byUs: true, timeout: true}, kernel: no, want: ExitTimeout},
		"asked, and it obeyed":      {end: ending{byUs: true, polite: true}, kernel: no, want: ExitOK},
		"asked, segfault meanwhile": {status: isolation.ExitStatus{Signal: syscall.SIGSEGV}, end: ending{byUs: true}, kernel: no, want: ExitSignal},
	} {
		t.Run(name, func(t *testing.T) {
			p := &process{status: c.status, usage: isolation.Usage{OOMKills: c.kills}, sb: pidOnly{}}
			if got := p.classify(c.end, c.kernel); got.Kind != c.want {
				t.Errorf("got %+v, want %s", got, c.want)
			}
		})
	}
}

type pidOnly struct{ isolation.Sandbox }

func (pidOnly) PID() int { return 42 }

func TestOOMRecord(t *testing.T) {
	const rec = "3,1234,5000000,-;Out of memory: Killed process 4711 (python3) total-vm:1kB"
	for name, c := range map[string]struct {
		rec  string
		pid  int
		from time.Duration
		want bool
	}{
		"ours":            {rec, 4711, 4 * time.Second, true},
		"another process": {rec, 471, 4 * time.Second, false},
		"long ago":        {rec, 4711, 60 * time.Second, false},
		"cgroup":          {"3,1,5000000,-;Memory cgroup out of memory: Killed process 4711 (python3)", 4711, 0, true},
		"no record":       {"garbage", 4711, 0, false},
	} {
		if got := oomRecord(c.rec, c.pid, c.from); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Whatever a worker prints, in whatever pieces, the lines are the same.
func TestLogSplit_PiecesDoNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[a-z é]{0,40}`), 1, 30).Draw(t, "lines")
		text := strings.Join(words, "\n") + "\n"
		w := &WorkerLog{fresh: make(chan struct{}), work: make(chan struct{}, 1)}
		buf := make([]byte, 4*maxLine)
		fill := 0
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			// A multi-byte letter is never cut: only whole lines are converted.
			fill += copy(buf[fill:], rest[:n])
			rest = rest[n:]
			fill = w.split(buf[:fill], "stdout")
		}
		var got []string
		for _, l := range w.ring {
			got = append(got, l.Text)
		}
		if strings.Join(got, "\n") != strings.Join(words, "\n") {
			t.Fatalf("got %q, want %q", got, words)
		}
	})
}

func TestLogLine_RoundTrip(t *testing.T) {
	for _, l := range []LogLine{
		{At: time.Unix(1, 2000).UTC(), Stream: "stderr", Text: "a | b"},
		{At: time.Unix(1, 2000).UTC(), Stream: "log", Call: "01J", Level: "error", Text: ""},
	} {
		got, ok := parseLine(string(appendHead(nil, l)) + l.Text)
		if !ok || got != l {
			t.Errorf("got %+v, want %+v", got, l)
		}
	}
	if _, ok := parseLine("Traceback (most recent call last):"); ok {
		t.Error("parsed what is no line of ours")
	}
}

func TestErrors_ALastLineWithoutAnEndIsCut(t *testing.T) {
	lost := &WorkerLostError{Instance: "w", Exit: Exit{Kind: ExitError, Code: 7}, Stderr: []string{"first", strings.Repeat("é", 40<<10)}}
	for _, text := range []string{lost.Error(), (&StartError{Instance: "w", Step: "load", Exit: &lost.Exit, Stderr: lost.Stderr}).Error()} {
		if !strings.Contains(text, "exit code 7: éé") || !strings.HasSuffix(text, "é…") || len(text) > 600 {
			t.Errorf("%d bytes: %.80q", len(text), text)
		}
	}
	lost.Stderr = []string{"no such model"}
	if got := lost.Error(); got != `worker "w" ended: exit code 7: no such model` {
		t.Error(got)
	}
}
