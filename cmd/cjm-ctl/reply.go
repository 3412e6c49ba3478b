package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/cjmd/cjmd/internal/client"
)

// reply is a successful answer: decoded, and as it came for --json.
type reply[T any] struct {
	value  T
	raw    json.RawMessage
	status int
	header http.Header
}

// read decodes an answer of the generated client. A problem becomes a
// *client.ProblemError, a broken connection an *unreachableError.
func read[T any](resp *http.Response, err error) (reply[T], error) {
	var out reply[T]
	resp, err = checked(resp, err)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	out.status, out.header = resp.StatusCode, resp.Header
	if out.raw, err = io.ReadAll(resp.Body); err != nil {
		return out, broken(err)
	}
	if resp.StatusCode == http.StatusNoContent {
		return out, nil
	}
	if err := json.Unmarshal(out.raw, &out.value); err != nil {
		return out, fmt.Errorf("cannot understand the answer of the daemon to %s %s: %w", resp.Request.Method, resp.Request.URL.Path, err)
	}
	return out, nil
}

// checked passes a 2xx answer on, its body unread.
func checked(resp *http.Response, err error) (*http.Response, error) {
	if err != nil {
		return nil, broken(err)
	}
	if err := client.Check(resp); err != nil {
		var p *client.ProblemError
		if errors.As(err, &p) && strings.HasPrefix(p.Code, "http_") {
			return nil, &hintError{
				fmt.Errorf("%s %s answered %s, which is not how cjmd answers", resp.Request.Method, resp.Request.URL.Path, resp.Status),
				"does another program listen there? look at --host and --socket",
			}
		}
		return nil, err
	}
	return resp, nil
}

// broken names what a request without an answer means to the user.
func broken(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var op *net.OpError
	if errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &hintError{&unreachableError{"", err}, "cjm-ctl status shows whether it is back"}
	}
	return fmt.Errorf("cannot ask the daemon: %w", err)
}

// problemJSON is the daemon's own words for --json, nil when there are none.
func problemJSON(err error) []byte {
	var p *client.ProblemError
	if !errors.As(err, &p) {
		return nil
	}
	raw, err := json.Marshal(p.Problem)
	if err != nil {
		return nil
	}
	return raw
}

// problemLines lists what was wrong with single fields.
func problemLines(err error) []string {
	var p *client.ProblemError
	if !errors.As(err, &p) {
		return nil
	}
	var out []string
	for _, f := range p.Errors {
		line := f.Message
		if f.Pointer != "" {
			line = f.Pointer + ": " + line
		}
		if f.Suggestion != "" && !strings.Contains(f.Message, f.Suggestion) {
			line += " (did you mean " + f.Suggestion + "?)"
		}
		out = append(out, line)
	}
	return out
}

// nextStep is the sentence after the arrow.
func nextStep(err error) string {
	var hint *hintError
	if errors.As(err, &hint) {
		return hint.hint
	}
	var p *client.ProblemError
	if !errors.As(err, &p) {
		return ""
	}
	switch {
	case p.Next != "":
		return p.Next
	case p.Status == http.StatusUnauthorized:
		return "give a token with CJMD_TOKEN or --token-file; the daemon's own is in " + adminToken + " of its state directory"
	case p.RetryAfter > 0:
		return "try again in " + span(p.RetryAfter)
	}
	return ""
}
