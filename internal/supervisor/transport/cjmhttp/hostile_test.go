package cjmhttp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/cjmhttp"
)

// served opens a channel whose other end is this process: what a worker says is
// said by serve, byte by byte, for each connection that it accepts.
func served(t *testing.T, serve func(net.Conn)) *box {
	t.Helper()
	ch, err := cjmhttp.New(cjmhttp.Options{ProgressEvery: 20 * time.Millisecond}).Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(ch.Files()[0])
	if err != nil {
		t.Fatal(err)
	}
	life, err := unix.Dup(int(ch.Files()[1].Fd()))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	conn, err := ch.Open(context.Background(), supervisor.Hello{Limits: supervisor.Limits{MaxPayload: 1 << 16}}, func(supervisor.ConnEvent) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		<-conn.Done()
		_ = l.Close()
		<-done
		_ = unix.Close(life)
		_ = ch.Close()
	})
	return &box{Conn: conn, t: t}
}

// worker answers what a good worker does, but for one path.
func worker(path string, bad func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if req.URL.Path == path {
				bad(c)
				return
			}
			body := map[string]string{
				"/health": `{"status":"running","pid":7,"name":["odd"],"version":null}`, "/openapi.json": `{"info":{"title":"T"},"paths":{"/reconfigure":{}}}`,
				"/progress": `{"progress":"half","message":7}`, "/initialize": `{"status":"ok"}`, "/execute": `"fine"`,
			}[req.URL.Path]
			status := "200 OK"
			if body == "" {
				status, body = "500 Internal Server Error", "Internal Server Error"
			}
			fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
			if req.Close {
				return
			}
		}
	}
}

func say(text string) func(net.Conn) { return func(c net.Conn) { _, _ = io.WriteString(c, text) } }

func TestReady_OddAnswersAreEndured(t *testing.T) {
	t.Parallel()
	b := served(t, worker("/nothing", nil))
	r := b.ready()
	if r.PID != 7 || r.Name != "" || r.Schema != nil || r.Config != nil {
		t.Fatalf("%+v", r)
	}
	if got, _, err := b.call(supervisor.Call{ID: "a"}); err != nil || got != `"fine"` {
		t.Fatalf("%s %v", got, err)
	}
}

func TestReady_BrokenServersEndTheStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ path, text string }{
		"no HTTP":          {"/health", "Traceback (most recent call last):\n"},
		"closes":           {"/health", ""},
		"no JSON":          {"/health", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"},
		"error":            {"/health", "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"},
		"endless header":   {"/health", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 11<<20)},
		"cut off":          {"/openapi.json", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"},
		"not a document":   {"/openapi.json", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"},
		"over the limit":   {"/config", "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat(" ", 70000)},
		"redirect to what": {"/openapi.json", "HTTP/1.1 302 Found\r\nLocation: http://[::1/\r\nContent-Length: 0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := served(t, worker(c.path, say(c.text)))
			_, err := b.Ready(b.ctx())
			var lost *supervisor.ConnLostError
			var call *supervisor.CallError
			if !errors.As(err, &lost) && !errors.As(err, &call) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestExecute_BrokenAnswers(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		stream bool
		text   string
		lost   bool   // or an error of this category
		want   string // category
		fault  bool   // ended because of what it said
	}{
		"closed":               {false, "", true, "", false},
		"cut off":              {false, ok + "Content-Length: 9\r\n\r\n{", true, "", false},
		"no HTTP":              {false, "oops\r\n\r\n", true, "", false},
		"no JSON":              {false, ok + "Content-Length: 4\r\n\r\noops", false, "fatal", false},
		"too long":             {false, ok + "Content-Length: 70000\r\n\r\n" + strings.Repeat("1", 70000), false, "resource", false},
		"text error":           {false, "HTTP/1.1 500 E\r\nContent-Length: 21\r\n\r\nInternal Server Error", false, "fatal", false},
		"validation":           {false, "HTTP/1.1 422 E\r\nContent-Length: 35\r\n\r\n" + `{"detail":[{"loc":["x"],"msg":"m"}]}`[:35], false, "user_input", false},
		"odd job error":        {false, "HTTP/1.1 500 E\r\nContent-Length: 35\r\n\r\n" + `{"_job_error":{"category":"nobody"}}`[:35], false, "fatal", false},
		"stream without end":   {true, ok + "\r\n1\n2\n", true, "", true},
		"stream cut off":       {true, ok + "Transfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n", true, "", false},
		"stream with a length": {true, ok + "Content-Length: 9\r\n\r\n1\n2\n", true, "", false},
		"endless line":         {true, ok + "Transfer-Encoding: chunked\r\n\r\n11170\r\n" + strings.Repeat("1", 70000), true, "", true},
		"wrong chunk sizes":    {true, ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", true, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := "/execute"
			if c.stream {
				path = "/execute_stream"
			}
			b := served(t, worker(path, say(c.text)))
			b.ready()
			_, _, err := b.call(supervisor.Call{ID: "a", Stream: c.stream})
			var lost *supervisor.ConnLostError
			var call *supervisor.CallError
			if errors.As(err, &lost) != c.lost || errors.As(err, &call) == c.lost || call != nil && call.Category != c.want {
				t.Fatalf("got %v (%+v)", err, call)
			}
			if !c.lost {
				if b.Err() != nil {
					t.Fatalf("the connection ended: %v", b.Err())
				}
				return
			}
			<-b.Done() // a call whose worker is lost ends the connection: nobody waits for ever
			var fault interface{ PeerAtFault() bool }
			if errors.As(b.Err(), &fault) != c.fault {
				t.Fatalf("ended by %v", b.Err())
			}
		})
	}
}

// FuzzJobError: whatever a worker calls its error, it has a category of ours and
// says something.
func FuzzJobError(f *testing.F) {
	f.Add(`{"_job_error":{"category":"transient","message":"","original_exc_repr":"X('y')","retry_after_seconds":1e300}}`, 500)
	f.Add(`{"detail":{"a":1}}`, 404)
	f.Add(`{"_job_error":{"category":"resource","resource_shortfall":{"resource":"disk_mb","needed":1,"available":0}}}`, 500)
	f.Fuzz(func(t *testing.T, body string, code int) {
		e := cjmhttp.CallErrorOf(code, []byte(body))
		switch e.Category {
		case "user_input", "transient", "resource", "fatal", "timeout", "oom", "cancelled":
		default:
			t.Fatalf("%q became category %q", body, e.Category)
		}
		if strings.TrimSpace(e.Message) == "" || len(e.Message) > 9<<10 || e.RetryAfter < 0 || e.RetryAfter > 24*time.Hour || e.Category == "user_input" && e.Retriable {
			t.Fatalf("%q became %+v", body, e)
		}
		if _, err := json.Marshal(e.Message); err != nil {
			t.Fatal(err)
		}
	})
}
