package cjmhttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// Bounds of what an error carries.
const (
	maxMessage   = 8 << 10
	maxTraceback = 32 << 10
	maxRetry     = 24 * time.Hour
)

// refusal turns the status error of a control request into the plugin's error.
func refusal(err error, what string) error {
	var s *statusError
	if !errors.As(err, &s) {
		return err
	}
	return &supervisor.CallError{Category: "fatal", Message: orSay(detail(s.body), fmt.Sprintf("%s failed (status %d) without a message", what, s.code))}
}

// callError is the error of a call that was answered with another status than 200.
func callError(code int, body []byte) *supervisor.CallError {
	if code == http.StatusConflict {
		return &supervisor.CallError{Category: "cancelled", Cancelled: true, Message: orSay(detail(body), "cancelled")}
	}
	if e := jobError(body); e != nil {
		return e
	}
	e := &supervisor.CallError{Category: "fatal", Message: detail(body)}
	switch code {
	case http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusBadRequest:
		e.Category = "user_input" // no such task or method, or arguments that the server does not take
	}
	if e.Message == "" {
		// Starlette's words for everything that went wrong outside the plugin, such as
		// a result that is no JSON.
		e.Message = fmt.Sprintf("the worker could not make an answer (status %d: %.200s); its log says why", code, strings.TrimSpace(string(body)))
	}
	return withOOM(e)
}

// jobError reads the typed error of the releases from 0.0.31 on; nil when body is none.
func jobError(body []byte) *supervisor.CallError {
	var doc struct {
		JobError *struct {
			Category          string   `json:"category"`
			Message           string   `json:"message"`
			Retriable         bool     `json:"retriable"`
			Repr              string   `json:"original_exc_repr"`
			Traceback         string   `json:"traceback"`
			RetryAfterSeconds float64  `json:"retry_after_seconds"`
			FieldsInvalid     []string `json:"fields_invalid"`
			Shortfall         *struct {
				Resource          string
				Needed, Available float64
			} `json:"resource_shortfall"`
		} `json:"_job_error"`
	}
	if json.Unmarshal(body, &doc) != nil || doc.JobError == nil {
		return nil
	}
	j := doc.JobError
	e := &supervisor.CallError{
		Category: j.Category, Type: className(j.Repr), Message: cut(j.Message, maxMessage), Traceback: cut(j.Traceback, maxTraceback),
		Retriable: j.Retriable, RetryAfter: seconds(j.RetryAfterSeconds), Fields: j.FieldsInvalid,
	}
	switch {
	case strings.HasSuffix(e.Type, "CancelledError") || strings.HasSuffix(e.Type, "Cancelled"):
		e.Category, e.Cancelled, e.Retriable = "cancelled", true, false
	case strings.HasSuffix(e.Type, "TimeoutError") && e.Category != "user_input":
		e.Category = "timeout"
	}
	switch e.Category {
	case "transient", "resource", "timeout", "cancelled":
	case "user_input":
		e.Retriable = false // the worker means "after the user mended it"; the same call fails again
	default:
		e.Category = "fatal"
	}
	if s := j.Shortfall; s != nil {
		e.Message += fmt.Sprintf(" (%s: %g needed, %g available)", s.Resource, s.Needed, s.Available)
	}
	if e.Message == "" {
		e.Message = orSay(j.Repr, "the plugin failed without a message")
	}
	return withOOM(e)
}

// withOOM recognises a device or a host that was full: what is known about a
// plugin's needs is corrected by it.
func withOOM(e *supervisor.CallError) *supervisor.CallError {
	full := e.Type == "OutOfMemoryError" || e.Type == "MemoryError" || e.Type == "ResourceExhaustedError" ||
		e.Category != "user_input" && strings.Contains(strings.ToLower(e.Message), "out of memory")
	if full && !e.Cancelled {
		e.Category, e.Retriable = "oom", true
	}
	return e
}

// className cuts the class out of a Python repr such as ValueError('no').
func className(repr string) string {
	name, _, found := strings.Cut(repr, "(")
	if !found || strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return ""
	}
	return name[strings.LastIndex(name, ".")+1:]
}

// detail is FastAPI's error text, "" when body has none.
func detail(body []byte) string {
	var d struct {
		Detail any `json:"detail"`
	}
	if json.Unmarshal(body, &d) != nil || d.Detail == nil {
		return ""
	}
	if s, ok := d.Detail.(string); ok {
		return cut(s, maxMessage)
	}
	b, _ := json.Marshal(d.Detail) // came out of a decoder: cannot fail
	return cut(string(b), maxMessage)
}

func orSay(s, otherwise string) string {
	if strings.TrimSpace(s) == "" {
		return otherwise
	}
	return s
}

// cut keeps both ends, which say most.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	half := most/2 - 16
	return strings.ToValidUTF8(s[:half], "") + "\n… cut …\n" + strings.ToValidUTF8(s[len(s)-half:], "")
}

// seconds converts a wish of a plugin, which may be anything, to a duration.
func seconds(t float64) time.Duration {
	if !(t > 0) {
		return 0
	}
	return time.Duration(min(t, maxRetry.Seconds()) * float64(time.Second))
}
