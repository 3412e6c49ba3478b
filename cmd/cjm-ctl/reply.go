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
	"github.com/cjmd/cjmd/internal/plugins/envs"
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
	var file *envs.FileError
	if errors.As(err, &file) && len(file.Problems) > 1 {
		return strings.Split(file.Error(), "\n")
	}
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

// sentence is what went wrong without the list of fields, which is told line
// by line.
func sentence(err error) string {
	var file *envs.FileError
	if errors.As(err, &file) && len(file.Problems) > 1 {
		return fmt.Sprintf("cannot use %s, for %d reasons:", file.Path, len(file.Problems))
	}
	var p *client.ProblemError
	if !errors.As(err, &p) {
		return err.Error()
	}
	short := p.Title
	if p.Detail != "" {
		// The title says which rule, the detail which case of it; two sentences
		// that begin alike say the same.
		if first, _, _ := strings.Cut(p.Title, " "); strings.HasPrefix(p.Detail, first+" ") {
			short = p.Detail
		} else {
			short += " " + p.Detail
		}
	}
	return strings.Replace(err.Error(), p.Error(), short, 1)
}

// verbFor says the next step in the words of this program. The daemon's own
// next steps are for those who use the API; they serve for every other code.
func verbFor(code string) string {
	switch code {
	case "unauthorized":
		return "give a token with CJMD_TOKEN or --token-file; the daemon's own is in " + adminToken + " of its state directory"
	case "job_not_found":
		return "cjm-ctl jobs lists what is kept"
	case "plugin_not_found", "unknown_plugin":
		return "cjm-ctl plugins lists what was found; cjm-ctl plugins discover looks again"
	case "plugin_disabled":
		return "cjm-ctl enable NAME"
	case "unknown_name":
		return "the names that are known stand above"
	case "in_use":
		return "cjm-ctl jobs --plugin NAME shows its jobs; a plugin's own instance can only be disabled"
	case "worker_not_found":
		return "cjm-ctl workers lists them"
	case "token_not_found":
		return "cjm-ctl token list"
	case "lease_not_found":
		return "cjm-ctl leases lists them"
	case "never_fits":
		return "cjm-ctl devices shows what each has"
	case "refused":
		return "cjm-ctl plan NAME tells what is missing"
	case "state_conflict":
		return "cjm-ctl job JOB shows how it stands"
	case "not_final":
		return "cjm-ctl wait JOB waits for it"
	case "no_result":
		return "cjm-ctl job JOB shows its error, cjm-ctl logs JOB its log"
	case "invalid_config":
		return "cjm-ctl config schema NAME shows what fits"
	case "not_loaded":
		return "cjm-ctl load NAME"
	case "not_supported":
		return "cjm-ctl workers NAME shows what it can"
	case "start_failed", "plugin_error", "worker_lost":
		return "cjm-ctl logs NAME has its last words"
	case "cooling_down":
		return "cjm-ctl workers NAME tells why it failed; load or reload starts it at once"
	case "draining":
		return "cjm-ctl resume ends the drain"
	case "invalid_body", "invalid_parameter":
		return "cjm-ctl help VERB explains its flags"
	}
	return ""
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
	switch verb := verbFor(p.Code); {
	case verb != "":
		return verb
	case p.Next != "":
		return p.Next
	case p.RetryAfter > 0:
		return "try again in " + span(p.RetryAfter)
	}
	return ""
}
