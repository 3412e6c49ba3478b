package jobs

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// eventData is the object of an event about a job.
type eventData map[string]any

func jobEvent(kind events.Kind, id ID, instance string, at time.Time, data eventData) events.Draft {
	return events.Draft{At: at, Kind: kind, Job: string(id), Instance: instance, Data: json.RawMessage(data.appendJSON(make([]byte, 0, 128)))}
}

// appendJSON writes what json.Marshal would. Every job costs several events,
// made while Queue.mu is held: reflection over a map took a fifth of a job's
// allocations.
func (d eventData) appendJSON(b []byte) []byte {
	var room [8]string
	keys := room[:0]
	for k := range d {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, k), ':')
		switch v := d[k].(type) {
		case string:
			b = appendText(b, v)
		case ID:
			b = appendText(b, string(v))
		case Phase:
			b = appendText(b, string(v))
		case Category:
			b = appendText(b, string(v))
		case int:
			b = strconv.AppendInt(b, int64(v), 10)
		case int32:
			b = strconv.AppendInt(b, int64(v), 10)
		case int64:
			b = strconv.AppendInt(b, v, 10)
		case bool:
			b = strconv.AppendBool(b, v)
		case eventData:
			if v == nil {
				b = append(b, "null"...)
			} else {
				b = v.appendJSON(b)
			}
		default:
			b = appendAny(b, v)
		}
	}
	return append(b, '}')
}

// appendText writes a JSON string.
func appendText(b []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return appendAny(b, s)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func appendAny(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil { // only values that encode are put in
		panic(fmt.Sprintf("cannot encode %T for an event: %v", v, err))
	}
	return append(b, text...)
}

// publicError is what events tell of an error: anyone may follow the journal,
// so traceback and worker output are left to the job's owner.
func publicError(e *Error) eventData {
	if e == nil {
		return nil
	}
	d := eventData{"category": e.Category, "message": e.Message, "retriable": e.Retriable}
	if e.Type != "" {
		d["type"] = e.Type
	}
	return d
}
