package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// raw sends bytes over a TCP connection of its own and returns what comes back
// until the daemon closes it.
func (f *fixture) raw(text string) string {
	f.t.Helper()
	conn, err := net.Dial("tcp", f.tcp.Listener.Addr().String())
	require.NoError(f.t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(f.t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(conn, text)
	require.NoError(f.t, err)
	data, err := io.ReadAll(conn)
	require.NoError(f.t, err, "the daemon keeps the connection")
	return string(data)
}

// Nobody is known yet when a body begins, so whoever can connect could hold
// connections by sending it never.
func TestHostile_ABodyThatNeverComesEndsTheConnection(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.BodyTimeout = 50 * time.Millisecond })
	for what, head := range map[string]string{
		"no token":          "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
		"foreign host":      "POST /v1/jobs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000\r\n\r\n{",
		"unknown address":   "POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
		"takes no body":     "POST /v1/queue/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + f.admin + "\r\nTransfer-Encoding: chunked\r\n\r\n",
		"half a body":       "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + f.admin + "\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
		"a get with a body": "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + f.admin + "\r\nContent-Length: 1000\r\n\r\n{",
	} {
		got := f.raw(head)
		require.Regexp(t, `^HTTP/1.1 4\d\d `, got, what)
		require.Contains(t, got, "application/problem+json", what)
	}
	require.Equal(t, jobs.ModeRunning, f.mode(), "a body that is not wanted is refused before anything is done")
}

func (f *fixture) mode() jobs.Mode {
	m := f.queue.Controls()[""]
	if m == "" {
		return jobs.ModeRunning
	}
	return m
}

// A wait after a body must not inherit the body's deadline.
func TestHostile_TheDeadlineOfABodyIsNotThatOfAWait(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.BodyTimeout = 50 * time.Millisecond })
	r := f.doTCP(f.admin, "POST", "/v1/jobs?wait=300ms", `{"plugin":"textstats"}`)
	require.Equal(t, 202, r.StatusCode)
}

func TestHostile_RequestTargetsAndHosts(t *testing.T) {
	t.Parallel()
	f := setup(t)
	auth := "Authorization: Bearer " + f.admin + "\r\nConnection: close\r\n\r\n"
	for _, c := range []struct{ head, status string }{
		{"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n", "200"},
		{"GET /v1/jobs HTTP/1.1\r\nHost: [::1]:8765\r\n", "200"},
		{"GET http://localhost/v1/jobs HTTP/1.1\r\nHost: localhost\r\n", "200"},
		{"GET http://evil.example/v1/jobs HTTP/1.1\r\nHost: localhost\r\n", "403"},
		{"GET http://localhost/v1/jobs HTTP/1.1\r\nHost: evil.example\r\n", "200"}, // the target wins (RFC 9112, 3.2.2)
		{"GET /v1/jobs HTTP/1.0\r\n", "403"},
		{"GET /v1/jobs HTTP/1.1\r\nHost:\r\n", "403"},
		{"GET /v1/jobs HTTP/1.1\r\n", "400"},
		{"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", "400"},
		{"GET /v1/jobs HTTP/1.1\r\nHost: localhost.evil.example\r\n", "403"},
		{"GET /v1/jobs HTTP/1.1\r\nHost: evil@localhost\r\n", "400"},
		{"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n", "403"},
		{"GET /v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n", "404"},
		{"GET /v1/jobs/..%2f..%2fsecret/result HTTP/1.1\r\nHost: localhost\r\n", "404"},
		{"GET /v1/jobs/a%00b HTTP/1.1\r\nHost: localhost\r\n", "404"},
		{"GET /v1/plugins/..%2f..%2fx/logs HTTP/1.1\r\nHost: localhost\r\n", "404"},
		{"GET /v1/plugins/" + strings.Repeat("x", 4000) + " HTTP/1.1\r\nHost: localhost\r\n", "404"},
		{"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n", "400"},
	} {
		got := f.raw(c.head + auth)
		require.True(t, strings.HasPrefix(got, "HTTP/1.1 "+c.status) || strings.HasPrefix(got, "HTTP/1.0 "+c.status), "%s: %s", c.head, got)
	}
	got := f.raw("POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n" +
		strings.TrimSuffix(auth, "\r\n") + "\r\n0\r\n\r\nGET /v1/tokens HTTP/1.1\r\nHost: localhost\r\n\r\n")
	require.Equal(t, 1, strings.Count(got, "HTTP/1.1 "), "one request, one answer: %s", got)
}

// What a plugin returned is data, whatever it calls it.
func TestHostile_AResultIsNoPage(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for given, want := range map[string]string{
		"text/html":                         "text/html",
		"text/html\r\nSet-Cookie: a=b":      "application/octet-stream",
		"nonsense":                          "application/octet-stream",
		"text/plain; charset=\"a\r\nX: y\"": "application/octet-stream",
		"image/svg+xml; charset=utf-8":      "image/svg+xml; charset=utf-8",
	} {
		id := f.submit(`{"plugin":"textstats"}`)
		_, err := f.run(id).Finish(t.Context(), jobs.Outcome{Status: jobs.Completed, Result: []byte("<script>alert(1)</script>"), ContentType: given})
		require.NoError(t, err)
		resp, err := f.socket.Get("http://localhost/v1/jobs/" + id + "/result")
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want, resp.Header.Get("Content-Type"), "%q", given)
		require.Equal(t, "attachment", resp.Header.Get("Content-Disposition"))
		require.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		require.Contains(t, resp.Header.Get("Content-Security-Policy"), "sandbox")
		require.Empty(t, resp.Header.Get("Set-Cookie"))
		r := f.do("GET", "/v1/jobs/"+id+"/result", nil, header("Range", "bytes=99999-"))
		require.Equal(t, 416, r.StatusCode)
		require.Equal(t, "bad_range", r.code())
		require.Equal(t, "bytes */25", r.Header.Get("Content-Range"))
	}
}

// broken is a queue whose store cannot be written.
type broken struct {
	Jobs
	err error
}

func (b broken) Submit(context.Context, []jobs.Submission) ([]jobs.Submitted, error) {
	return nil, b.err
}

func TestStore_FullIsToldFromUnavailable(t *testing.T) {
	t.Parallel()
	for want, err := range map[int]error{
		507: fmt.Errorf("cannot submit: %w: %w", jobs.ErrStoreUnavailable, syscall.ENOSPC),
		503: fmt.Errorf("cannot submit: %w: %w", jobs.ErrStoreUnavailable, syscall.EIO),
	} {
		f := setup(t, func(o *Options) { o.Jobs = broken{o.Jobs, err} })
		r := f.do("POST", "/v1/jobs", `{"plugin":"textstats"}`)
		require.Equal(t, want, r.StatusCode)
		require.NotEmpty(t, r.Header.Get("Retry-After"))
		require.NotContains(t, string(r.body), "errno")
	}
	re := explain(fmt.Errorf("cannot write the tokens: %w", syscall.ENOSPC))
	require.Equal(t, codeStoreFull, re.Code)
}

func TestSystem_ARegisteredMonitorIsNamedBeforeItsFirstSample(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.machine.snap = resource.Snapshot{}
	var s struct {
		Monitor string
		Fresh   bool
	}
	f.do("GET", "/v1/system", nil).into(t, &s)
	require.Equal(t, "cpu", s.Monitor)
	require.False(t, s.Fresh)
}

func TestManifestSchema_IsServed(t *testing.T) {
	t.Parallel()
	f := setup(t)
	resp, err := http.Get(f.tcp.URL + "/manifest.schema.json")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, "application/schema+json", resp.Header.Get("Content-Type"))
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "{\n", line)
}
