package cjmhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// statusError is an answer that is none of 2xx.
type statusError struct {
	path string
	code int
	body []byte
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s answered %d: %.200s", e.path, e.code, e.body)
}

// ask makes one control request and returns the body of a 2xx answer. Errors:
// *statusError, ctx's, *supervisor.ConnLostError after the connection ended, or
// that this one request failed: whether the worker lives is for the life line to
// say, and one that is being stopped drops such requests and still cleans up.
func (c *Conn) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	// Only what may be sent twice goes over a kept connection: a server may close
	// one at the same moment.
	client := c.control
	if method != http.MethodGet {
		client = c.oneCall
	}
	ctx, release := c.within(ctx)
	defer release()
	resp, err := c.send(ctx, client, method, path, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return nil, unanswered(ctx, path, err)
	}
	defer resp.Body.Close()
	raw, err := c.readAll(resp.Body)
	var tooLong *tooLongError
	switch {
	case errors.As(err, &tooLong):
		return nil, tooLong.callError()
	case err != nil:
		return nil, unanswered(ctx, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, &statusError{path, resp.StatusCode, raw}
	}
	return raw, nil
}

// unanswered is the error of a control request that was not answered to its end.
func unanswered(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil { // within makes c.err the cause when the connection ended
		return context.Cause(ctx)
	}
	return fmt.Errorf("the worker did not answer %s: %w", path, err)
}

func (c *Conn) send(ctx context.Context, client *http.Client, method, path string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://worker"+path, body)
	if err != nil {
		return nil, fmt.Errorf("cannot make a request: %w", err)
	}
	if method == http.MethodPost {
		req.ContentLength = size
		req.Header.Set("Content-Type", "application/json")
	}
	return client.Do(req)
}

// broken is the error of a call that was not answered to its end. It ends the
// connection: the worker is gone or cannot be talked to, which is the same to
// whoever waits, and nobody may wait for ever.
func (c *Conn) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil { // within makes c.err the cause when the connection ended
		return context.Cause(ctx)
	}
	c.fail(err)
	return c.err
}

// tooLongError says that an answer breaks the limit.
type tooLongError struct{ limit int }

func (e *tooLongError) Error() string {
	return fmt.Sprintf("an answer is longer than the limit of %d bytes", e.limit)
}

func (e *tooLongError) callError() *supervisor.CallError {
	return &supervisor.CallError{Category: "resource", Message: fmt.Sprintf("the result is longer than the limit of %d bytes; return a file instead", e.limit)}
}

func (c *Conn) readAll(body io.Reader) ([]byte, error) {
	limit := c.hello.Limits.MaxPayload
	raw, err := io.ReadAll(io.LimitReader(body, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > limit {
		return nil, &tooLongError{limit}
	}
	return raw, nil
}
