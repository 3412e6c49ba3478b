package wire

import (
	"errors"
	"unicode/utf8"
)

// Error codes of version 1. The last three are JSON-RPC's own.
const (
	CodePlugin         = -32000 // the plugin failed
	CodeNotSupported   = -32001 // the plugin has no such hook
	CodeCancelled      = -32002 // the call ended because of a cancel
	CodeInvalidRequest = -32600
	CodeUnknownMethod  = -32601
	CodeBadParams      = -32602
)

// Header is a parsed header. All slices alias the text that was parsed.
//
//	Method set, HasID     a request        Params
//	Method set, no HasID  a notification   Params
//	Method nil            an answer to ID  Result or Error, the other is nil
type Header struct {
	HasID  bool
	ID     []byte
	Method []byte
	Params []byte // an object, or nil
	Result []byte // an object
	Error  []byte // an object
}

// ParseHeader reads one header and checks that it has one of the four shapes.
// The error is always a *ProtocolError.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	if !utf8.Valid(b) {
		return h, Broken(HeaderNotUTF8, "a header is no UTF-8: %s", Excerpt(b))
	}
	var version, id, method []byte
	o := NewObject(b)
	for o.Next() {
		switch string(o.Key) {
		case "jsonrpc":
			version = o.Value
		case "id":
			id = o.Value
		case "method":
			method = o.Value
		case "params":
			h.Params = o.Value
		case "result":
			h.Result = o.Value
		case "error":
			h.Error = o.Value
		}
	}
	if err := o.Err(); err != nil {
		var deep *depthError
		if errors.As(err, &deep) {
			return h, Broken(HeaderTooDeep, "a header is %v: %s", err, Excerpt(b))
		}
		return h, Broken(HeaderNotJSON, "a header is no JSON object: %v: %s", err, Excerpt(b))
	}
	if v, ok := Text(version); !ok || string(v) != "2.0" {
		return h, Broken(BadJSONRPC, `"jsonrpc" is not "2.0": %s`, Excerpt(b))
	}
	if id != nil {
		if h.ID, h.HasID = Text(id); !h.HasID || len(h.ID) == 0 {
			return h, Broken(BadID, `"id" is not a string with something in it: %s`, Excerpt(b))
		}
	}
	return h, h.shape(b, method)
}

func (h *Header) shape(b, method []byte) error {
	if method != nil {
		var ok bool
		switch h.Method, ok = Text(method); {
		case !ok || len(h.Method) == 0:
			return Broken(BadMessage, `"method" is not a string with something in it: %s`, Excerpt(b))
		case h.Result != nil || h.Error != nil:
			return Broken(BadMessage, "a message is a request and an answer at once: %s", Excerpt(b))
		case h.Params != nil && !IsObject(h.Params):
			return Broken(BadParams, `"params" is no object: %s`, Excerpt(b))
		}
		return nil
	}
	switch {
	case h.Result == nil && h.Error == nil:
		return Broken(BadMessage, "a message has no method, no result and no error: %s", Excerpt(b))
	case h.Result != nil && h.Error != nil:
		return Broken(BadMessage, "an answer has both a result and an error: %s", Excerpt(b))
	case !h.HasID:
		return Broken(BadID, "an answer has no id: %s", Excerpt(b))
	case h.Result != nil && !IsObject(h.Result):
		return Broken(BadParams, `"result" is no object: %s`, Excerpt(b))
	case h.Error != nil && !IsObject(h.Error):
		return Broken(BadParams, `"error" is no object: %s`, Excerpt(b))
	}
	return nil
}
