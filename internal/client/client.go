// Package client talks to cjmd: the calls generated from api/openapi.yaml, a
// dialer for the Unix socket or TCP with a token, problems as typed errors, and
// a reader of server-sent events that goes on where it stopped. It is what
// cjm-ctl and the tests use. Start with New, then Follow. An API is safe for
// concurrent use and starts no goroutine that outlives a call.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// Options say where the daemon is. One of Socket and BaseURL is needed; Socket wins.
type Options struct {
	Socket    string // path of the Unix socket
	BaseURL   string // http://127.0.0.1:8765
	Token     string // sent as Authorization: Bearer
	UserAgent string // "" means "cjmd-client"
	// Transport replaces the HTTP transport, in tests; nil means our own.
	Transport http.RoundTripper
}

// API is the daemon: every generated call in its plain form (answers with
// *http.Response) and its WithResponse form, and what is written by hand beside it.
type API struct {
	*ClientWithResponses
	base  string
	doer  *http.Client
	agent string
	token string
}

// New returns a client. It connects with the first call. Calls end with their
// context; there is no other time limit, because streams and waits are long.
func New(o Options) (*API, error) {
	a := &API{base: strings.TrimSuffix(o.BaseURL, "/"), agent: o.UserAgent, token: o.Token}
	if a.agent == "" {
		a.agent = "cjmd-client"
	}
	rt := o.Transport
	if rt == nil {
		dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
		tr := &http.Transport{
			DialContext:         dialer.DialContext,
			MaxIdleConnsPerHost: 256,
			IdleConnTimeout:     90 * time.Second,
		}
		if o.Socket != "" {
			tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", o.Socket)
			}
		}
		rt = tr
	}
	if o.Socket != "" {
		a.base = "http://localhost"
	}
	if a.base == "" {
		return nil, errors.New("cannot find the daemon: neither a socket nor a URL was given")
	}
	a.doer = &http.Client{Transport: rt}
	gen, err := NewClientWithResponses(a.base, WithHTTPClient(a.doer), WithRequestEditorFn(a.prepare))
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %q: %w", o.BaseURL, err)
	}
	a.ClientWithResponses = gen
	return a, nil
}

// CloseIdle closes connections that are not in use.
func (a *API) CloseIdle() { a.doer.CloseIdleConnections() }

func (a *API) prepare(_ context.Context, r *http.Request) error {
	r.Header.Set("User-Agent", a.agent)
	if a.token != "" {
		r.Header.Set("Authorization", "Bearer "+a.token)
	}
	return nil
}

// Do sends any request to path (with its query), for what has no generated call.
func (a *API) Do(ctx context.Context, method, path string, body io.Reader, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("cannot make a request for %s: %w", path, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if err := a.prepare(ctx, req); err != nil {
		return nil, err
	}
	return a.doer.Do(req)
}

// ProblemError is an answer that is no success, as the daemon explained it.
type ProblemError struct {
	wire.Problem
	RetryAfter time.Duration // 0 when the daemon named none
}

func (e *ProblemError) Error() string {
	s := e.Title
	if e.Detail != "" {
		s = e.Detail
	}
	for _, f := range e.Errors {
		s += "; " + f.Pointer + ": " + f.Message
	}
	return s
}

// Check returns nil for a 2xx answer. For any other it reads and closes the
// body and returns *ProblemError.
func Check(resp *http.Response) error {
	if resp.StatusCode/100 == 2 {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("cannot read the answer %s: %w", resp.Status, err)
	}
	return problem(resp, body)
}

func problem(resp *http.Response, body []byte) error {
	e := &ProblemError{}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind == "application/problem+json" && json.Unmarshal(body, &e.Problem) == nil {
		return e
	}
	// Not the daemon's own words: something between, or no daemon at all.
	e.Problem = wire.Problem{Status: resp.StatusCode, Code: "http_" + strconv.Itoa(resp.StatusCode), Title: resp.Status,
		Detail: strings.TrimSpace(string(bytes.ToValidUTF8(body[:min(len(body), 300)], []byte("?"))))}
	return e
}

// Decode checks resp, reads its JSON body into a T and closes it.
func Decode[T any](resp *http.Response, err error) (T, error) {
	var v T
	if err != nil {
		return v, err
	}
	if err := Check(resp); err != nil {
		return v, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("cannot read the answer to %s: %w", resp.Request.URL.Path, err)
	}
	// Read to the end, so that the connection can be used again.
	_, _ = io.Copy(io.Discard, resp.Body)
	return v, nil
}
