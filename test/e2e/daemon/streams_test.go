package daemon

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

// same fails the test unless two readings of a log are equal.
func same(t *testing.T, what string, got, want []client.Event) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got) || i >= len(want):
			t.Fatalf("%s: %d events, want %d", what, len(got), len(want))
		case got[i].ID != want[i].ID || got[i].Kind != want[i].Kind || string(got[i].Data) != string(want[i].Data):
			t.Fatalf("%s: event %d is %s %s %.200s, want %s %s %.200s", what, i, got[i].ID, got[i].Kind, got[i].Data, want[i].ID, want[i].Kind, want[i].Data)
		}
	}
}

// withoutEnd drops the closing event, which is not numbered.
func withoutEnd(evs []client.Event) []client.Event {
	return slices.DeleteFunc(slices.Clone(evs), func(ev client.Event) bool { return ev.Kind == client.EventEnd })
}

// A client that comes back with the number of what it saw last gets exactly the
// rest: while the job runs, after its end, and after a restart of the daemon.
func TestStream_ResumeGivesTheExactSuffix(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	gate := s.Gate()
	req := Op("count", "to", 40, "at", 20, "gate", gate.Path)
	req.Stream = true
	job := s.Submit(req)
	path := JobPath(job.Id, "events")

	live := s.Stream(path)
	for n := 0; n < 10; {
		if live.Next().Kind == "chunk" {
			n++
		}
	}
	head := slices.Clone(live.Seen)
	live.Close() // in the middle of the job
	back := s.Stream(path, "Last-Event-ID", head[len(head)-1].ID)
	gate.Open()
	all := append(head, back.Rest()...)
	all = withoutEnd(all)
	AssertGapless(t, 1, all)

	for _, when := range []string{"after the end", "after a restart", "after a SIGKILL"} {
		switch when {
		case "after a restart":
			d.Restart(t)
		case "after a SIGKILL":
			d.Kill(t)
			d.Launch(t)
		}
		same(t, when, withoutEnd(s.Stream(path).Rest()), all)
		for _, after := range []int{0, 1, 7, len(all) / 2, len(all) - 1, len(all)} {
			what := fmt.Sprintf("%s, from %d", when, after)
			same(t, what, withoutEnd(s.Stream(path, "Last-Event-ID", strconv.Itoa(after)).Rest()), all[after:])
			same(t, what+" by parameter", withoutEnd(s.Stream(path+"?after="+strconv.Itoa(after), "Last-Event-ID", "3").Rest()), all[after:])
		}
		var chunks []client.Event
		for _, ev := range all[12:] {
			if ev.Kind == "chunk" || ev.Kind == "job.started" || ev.Kind == "job.completed" {
				chunks = append(chunks, ev)
			}
		}
		same(t, when+", chunks", withoutEnd(s.Stream(JobPath(job.Id, "stream"), "Last-Event-ID", "12").Rest()), chunks)
	}
}

func TestJournal_IsGaplessAcrossRestarts(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	for range 3 {
		s.Completed(Op("echo"), nil)
	}
	d.Restart(t)
	s.Completed(Op("echo"), nil)
	d.Kill(t)
	d.Launch(t)
	last := s.Completed(Op("echo"), nil)
	done := func(ev client.Event) bool { return ev.Kind == "job.completed" && Data(t, ev)["job"] == last.Id }
	all := s.Journal(0, done)
	AssertGapless(t, 1, all)
	if n := len(slices.DeleteFunc(Kinds(all), func(k string) bool { return k != "daemon.started" })); n != 3 {
		t.Errorf("the journal tells of %d starts of the daemon", n)
	}
	for _, after := range []uint64{1, 5, uint64(len(all) / 2), uint64(len(all) - 1)} {
		same(t, fmt.Sprintf("journal after %d", after), s.Journal(after, done), all[after:])
	}
	// A filter leaves out, it does not number anew.
	st := s.Stream("/v1/events?after=0&kind=job.completed")
	for range 5 {
		ev := st.Next()
		n, _ := strconv.Atoi(ev.ID)
		same(t, "filtered", []client.Event{ev}, all[n-1:n])
	}
	// The journal and a job's own log tell the same numbers.
	for _, ev := range s.Stream(JobPath(last.Id, "events")).Rest() {
		if seq, ok := Data(t, ev)["seq"].(float64); ok && all[int(seq)-1].Kind != ev.Kind {
			t.Errorf("the job's log calls %v %s, the journal %s", seq, ev.Kind, all[int(seq)-1].Kind)
		}
	}
}

func TestStream_ResetTellsWhatIsNotKept(t *testing.T) {
	s, lab := setup(t)
	st := s.Stream("/v1/events?after=999999999999")
	ev := st.Next()
	if ev.Kind != "stream.reset" {
		t.Fatalf("a number that was never given out is answered with %s", ev.Kind)
	}
	newest := Data(t, ev)["newest"].(float64)
	job := s.Submit(OpOf(lab, "echo"))
	if ev := st.Next(); ev.Kind == "stream.reset" || ev.ID != strconv.Itoa(int(newest)+1) {
		t.Errorf("after the reset comes %s %s, the newest was %v", ev.ID, ev.Kind, newest)
	}
	s.Wait(job.Id)
	events := s.Stream(JobPath(job.Id, "events") + "?after=4000").Rest()
	if events[0].Kind != "stream.reset" {
		t.Errorf("a job's log of a few records begins after record 4000 with %v", Kinds(events))
	}
}

// A job log is bounded: what is gone is told, with its numbers, and what is left
// is whole.
func TestStream_GapTellsWhatIsLost(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"joblog.max_mb": 8}})
	s := d.Session(t)
	const chunks, size = 240, 100_000
	req := Op("count", "to", chunks, "size", size)
	req.Stream = true
	job := s.Completed(req, nil)
	events := withoutEnd(s.Stream(JobPath(job.Id, "stream")).Rest())
	i := slices.IndexFunc(events, func(ev client.Event) bool { return ev.Kind == "gap" })
	if i < 0 {
		t.Fatalf("of %d MB in a log of 8 MB nothing is said to be lost", chunks*size/1_000_000)
	}
	gap := Data(t, events[i])
	to := uint64(gap["to"].(float64))
	AssertGapless(t, to+1, events[i+1:])
	if first := Data(t, events[i+1])["n"].(float64); first < 2 {
		t.Errorf("the first chunk after the gap is %v", first)
	}
	if last := Data(t, events[len(events)-2])["n"].(float64); last != chunks {
		t.Errorf("the last chunk is %v", last)
	}
	if kept := len(events) * size; kept > 9<<20 || kept < 3<<20 {
		t.Errorf("%d bytes are kept of a log of 8 MiB", kept)
	}
}

// A reader that takes nothing changes nothing for the others and is dropped.
func TestStream_StalledReadersAreHarmless(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	gate := s.Gate()
	req := Op("count", "to", 300, "at", 2, "gate", gate.Path, "size", 50_000)
	req.Stream = true
	job := s.Submit(req)
	good := s.Stream(JobPath(job.Id, "stream"))
	good.AwaitKind("chunk")
	for range 20 {
		conn, err := net.Dial("unix", d.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", JobPath(job.Id, "stream")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 64)); err != nil { // it is being served, and reads no more
			t.Fatal(err)
		}
	}
	begin := time.Now()
	gate.Open()
	rest := good.Rest()
	t.Logf("%d events of 50 kB beside 20 stalled readers in %s", len(rest), time.Since(begin))
	if got := withoutEnd(rest); len(got) != 300 || got[298].Kind != "chunk" {
		t.Errorf("the good reader got %d events", len(got))
	}
	s.IsCompleted(s.Get(job.Id))
	s.Completed(Op("echo"), nil)
	d.Stop(t) // they do not hold up the end either
}

func TestStream_BeginsWithRetryAndHeaders(t *testing.T) {
	s, lab := setup(t)
	job := s.Completed(OpOf(lab, "echo"), nil)
	resp, err := s.Raw("GET", JobPath(job.Id, "events"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h := resp.Header
	if h.Get("Content-Type") != "text/event-stream" || h.Get("X-Accel-Buffering") != "no" || h.Get("Cache-Control") != "no-cache" {
		t.Errorf("the headers are %v", h)
	}
	text := make([]byte, 32)
	if n, err := resp.Body.Read(text); err != nil || !contains(string(text[:n]), "retry:") {
		t.Errorf("the stream begins with %q, %v", text[:n], err)
	}
	Problem(t, 404, "job_not_found")(s.API.JobEvents(s.Ctx(), "nobody", nil))
}

func TestStream_TooManyAreRefused(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"limits.sse_streams": 3}})
	s := d.Session(t)
	// The stream that waited for readiness may still be counted.
	var open []*http.Response
	for len(open) < 4 {
		resp, err := s.Raw(http.MethodGet, "/v1/events", "")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			break
		}
		open = append(open, resp)
	}
	if len(open) < 2 || len(open) > 3 {
		t.Fatalf("%d streams were opened where 3 are allowed", len(open))
	}
	p := Problem(t, 429, "too_many_streams")(s.Raw("GET", "/v1/events", ""))
	if p.RetryAfter <= 0 {
		t.Error("the refusal does not say when to try again")
	}
	_ = open[0].Body.Close()
	for { // the daemon sees the end of a connection a moment later
		resp, err := s.Raw(http.MethodGet, "/v1/events", "")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			break
		}
	}
}

func TestStream_SamplesAreLive(t *testing.T) {
	s, lab := setup(t)
	st := s.Stream("/v1/events?samples=true&plugin=" + lab)
	ev := st.AwaitKind("system.sample")
	var sys wire.System
	if err := json.Unmarshal(ev.Data, &sys); err != nil || sys.MemoryTotalMb <= 0 || !sys.Fresh {
		t.Errorf("the sample is %s: %v", ev.Data, err)
	}
	at := ev.ID
	if next := st.AwaitKind("system.sample"); next.ID < at {
		t.Errorf("a sample carries the id %s after %s", next.ID, at)
	}
	s.Completed(OpOf(lab, "echo"), nil)
	st.AwaitKind("job.completed")
}

// The generated client's follower goes on by itself when the daemon restarts
// in the middle of a job.
func TestStream_FollowSurvivesARestart(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"workers.drain_grace": "100ms"}})
	s := d.Session(t)
	gate := s.Gate()
	req := Op("count", "to", 6, "at", 4, "gate", gate.Path)
	req.Stream = true
	job := s.Submit(req)
	type reading struct {
		events []client.Event
		err    error
	}
	third := make(chan struct{}, 1)
	done := make(chan reading)
	go func() {
		var r reading
		r.err = s.API.Follow(s.Ctx(), client.FollowOptions{Path: JobPath(job.Id, "events"), MaxDelay: 200 * time.Millisecond}, func(ev client.Event) error {
			r.events = append(r.events, ev)
			if ev.Kind == "chunk" && string(ev.Data) == "3" {
				select {
				case third <- struct{}{}:
				default: // the second attempt
				}
			}
			return nil
		})
		done <- r
	}()
	<-third
	d.Restart(t)
	gate.Open()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	AssertGapless(t, 1, withoutEnd(r.events))
	kinds := Kinds(r.events)
	if !slices.Contains(kinds, "job.requeued") || kinds[len(kinds)-2] != "job.completed" {
		t.Errorf("the events are %v", kinds)
	}
	if j := s.Get(job.Id); j.Attempt != 2 {
		t.Errorf("the job completed in attempt %d", j.Attempt)
	}
}
