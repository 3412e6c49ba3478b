package rpc

import (
	"fmt"
	"math"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// failure is the error object of an answer.
type failure struct {
	code       int64
	message    string
	category   string
	class      string
	traceback  string
	retriable  bool
	retryAfter time.Duration
	fields     []string
}

// parseFailure reads {code, message, data}.
func parseFailure(raw []byte) (*failure, error) {
	f := &failure{}
	var hasCode, hasMessage bool
	var data []byte
	for o := wire.NewObject(raw); o.Next(); {
		ok := true
		switch string(o.Key) {
		case "code":
			f.code, ok = wire.Int(o.Value)
			hasCode = true
		case "message":
			var s []byte
			s, ok = wire.Text(o.Value)
			f.message, hasMessage = string(s), true
		case "data":
			data = o.Value
		}
		if !ok {
			return nil, badMember("an error", o)
		}
	}
	if !hasCode || !hasMessage {
		return nil, wire.Broken(wire.BadParams, "an error needs a code and a message: %s", wire.Excerpt(raw))
	}
	if wire.IsObject(data) {
		return f, f.readData(data)
	}
	return f, nil // data of another kind says nothing that we know
}

func (f *failure) readData(data []byte) error {
	for o := wire.NewObject(data); o.Next(); {
		if wire.IsNull(o.Value) {
			continue
		}
		var s []byte
		ok := true
		switch string(o.Key) {
		case "category":
			s, ok = wire.Text(o.Value)
			f.category = string(s)
		case "type":
			s, ok = wire.Text(o.Value)
			f.class = string(s)
		case "traceback":
			s, ok = wire.Text(o.Value)
			f.traceback = string(s)
		case "retriable":
			f.retriable, ok = wire.Bool(o.Value)
		case "retry_after":
			var t float64
			t, ok = wire.Float(o.Value)
			f.retryAfter = seconds(t)
		case "fields":
			f.fields, ok = wire.Texts(o.Value)
		}
		if !ok {
			return badMember("the data of an error", o)
		}
	}
	return nil
}

// seconds converts a wish of a plugin, which may be anything, to a duration.
func seconds(t float64) time.Duration {
	const most = 24 * time.Hour
	if !(t > 0) {
		return 0
	}
	return time.Duration(math.Min(t, most.Seconds()) * float64(time.Second))
}

// callError is the error of an execute or of a load.
func (f *failure) callError(partial []byte) *supervisor.CallError {
	e := &supervisor.CallError{
		Category: category(f.category), Type: f.class, Message: f.message, Traceback: f.traceback,
		Retriable: f.retriable, RetryAfter: f.retryAfter, Fields: f.fields, Partial: partial,
		Cancelled: f.code == wire.CodeCancelled,
	}
	if e.Cancelled {
		e.Category = "cancelled"
	}
	if e.Message == "" {
		e.Message = "the plugin failed without a message"
		if e.Type != "" {
			e.Message = "the plugin raised " + e.Type + " without a message"
		}
	}
	return e
}

// requestError is the error of a control request.
func (f *failure) requestError(method string) error {
	if f.code == wire.CodeNotSupported || f.code == wire.CodeUnknownMethod {
		return fmt.Errorf("cannot ask for %q: %w", method, supervisor.ErrNotSupported)
	}
	return f.callError(nil)
}

// category keeps the known ones; whatever else a plugin calls its error, it is
// not known to be anybody's fault but the plugin's.
func category(s string) string {
	switch s {
	case "user_input", "transient", "resource", "timeout", "oom", "cancelled":
		return s
	}
	return "fatal"
}
