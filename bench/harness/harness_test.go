package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQuantileAndMedian(t *testing.T) {
	t.Parallel()
	var d []time.Duration
	for i := 100; i > 0; i-- {
		d = append(d, time.Duration(i))
	}
	require.Equal(t, time.Duration(51), Quantile(d, 0.5))
	require.Equal(t, time.Duration(100), Quantile(d, 0.99))
	require.Equal(t, time.Duration(100), Quantile(d, 1))
	require.Zero(t, Quantile(nil, 0.5))
	require.InDelta(t, 2.0, Median([]float64{3, 1, 2}), 0)
	require.InDelta(t, 2.5, Median([]float64{4, 1, 3, 2}), 0)
	require.Zero(t, Median(nil))
}

func TestResult_SaysWhetherTheAimWasMet(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal([]Result{
		Of("rpc", "jobs", 2500, "1/s").Against("raw", 10000).RatioAtLeast(0.15),
		Of("submit", "jobs", 7999, "1/s").AtLeast(8000),
		Of("footprint", "idle", 26.123456, "MiB"),
	})
	require.NoError(t, err)
	require.JSONEq(t, `[
		{"row":"rpc","metric":"jobs","value":2500,"unit":"1/s","beside":"raw","beside_value":10000,"ratio":0.25,"aim":">= 0.15x","met":true},
		{"row":"submit","metric":"jobs","value":7999,"unit":"1/s","beside":"","beside_value":null,"ratio":null,"aim":">= 8000 1/s","met":false},
		{"row":"footprint","metric":"idle","value":26.12,"unit":"MiB","beside":"","beside_value":null,"ratio":null,"aim":"","met":null}]`, string(text))
	var out bytes.Buffer
	require.NoError(t, Table(&out, []Result{Of("start", "ready", 90, "ms").Against("pass", 30).RatioAtMost(2.5)}))
	require.Contains(t, out.String(), "NO")
}

func TestParseAnswer(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 202 Accepted\r\nDate: x\r\nContent-Length: 4\r\n\r\n"
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
	for _, c := range []struct {
		text     string
		status   int
		complete bool
	}{
		{head + "abcd", 202, true},
		{head + "abc", 202, false},
		{head[:20], 0, false},
		{chunked + "0\r\n\r\n", 200, true},
		{chunked, 200, false},
	} {
		status, complete, err := parseAnswer([]byte(c.text))
		require.NoError(t, err)
		require.Equal(t, c.complete, complete, c.text)
		require.Equal(t, c.status, status, c.text)
	}
	_, _, err := parseAnswer([]byte("no answer at all\r\n\r\n"))
	require.Error(t, err)
}

// serve is an HTTP server on a Unix socket.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return path
}

func TestRunLoad_EveryClientGetsItsAnswers(t *testing.T) {
	t.Parallel()
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusAccepted)
		_, _ = fmt.Fprint(w, strings.Repeat("x", int(n)))
	})
	for _, size := range []int{10, 2 << 20} { // the long one fits no socket at once
		target := Target{Network: "unix", Address: path, Request: Request("POST", "/x", "", make([]byte, size)), Statuses: []int{202}}
		l, err := RunLoad(t.Context(), 4, 50*time.Millisecond, target)
		require.NoError(t, err)
		require.Positive(t, l.Rate)
		require.Positive(t, l.P50)
		require.GreaterOrEqual(t, l.P99, l.P50)
	}
	_, err := RunLoad(t.Context(), 2, time.Second, Target{Network: "unix", Address: path, Request: Request("GET", "/", "", nil), Statuses: []int{200}})
	var status *StatusError
	require.ErrorAs(t, err, &status)
	require.Equal(t, 202, status.Status)
}

func TestStream_CountsEventsUpToTheirEnd(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("y", 100_000) // longer than the reader's buffer
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			http.Error(w, "no", http.StatusTeapot)
			return
		}
		text := "retry: 1\n\n: comment\n\nid: 1\ndata: {\"n\":1}\nevent: chunk\n\nid: 2\ndata: " + long + "\nevent: chunk\n\n"
		if r.URL.RawQuery != "cut" {
			text += "id: 3\ndata: {}\nevent: stream.end\n\n"
		}
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
	})
	read := func(query string) (kinds, data []string, err error) {
		c, err := Dial(t.Context(), "unix", path)
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		events, err := c.Stream(Request("GET", "/stream"+query, "", nil))
		require.NoError(t, err)
		for {
			kind, d, err := events.Next()
			if err != nil {
				return kinds, data, err
			}
			kinds, data = append(kinds, string(kind)), append(data, string(d))
		}
	}
	kinds, data, err := read("")
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, []string{"chunk", "chunk", "stream.end"}, kinds)
	require.Equal(t, []string{`{"n":1}`, long, `{}`}, data)
	_, _, err = read("?cut")
	require.Error(t, err)
	require.False(t, errors.Is(err, io.EOF), "a stream that was cut is no stream that ended")

	c, err := Dial(t.Context(), "unix", path)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	_, err = c.Stream(Request("GET", "/other", "", nil))
	var status *StatusError
	require.ErrorAs(t, err, &status)
}

func TestExactCPU_AgreesWithTheCoarseFigure(t *testing.T) {
	coarse, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	first, err := ExactCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if first <= 0 || first < coarse-100*time.Millisecond {
		t.Errorf("%v exactly, %v in steps", first, coarse)
	}
	for begin := time.Now(); time.Since(begin) < 30*time.Millisecond; { // work
	}
	second, err := ExactCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if second <= first {
		t.Errorf("%v after work, %v before", second, first)
	}
}
