package wire

import "fmt"

// Rule names what a peer broke. The same names are used by the transcripts in
// testdata/wire, by docs/worker-protocol.md and by the Python runtime.
type Rule string

// The rules of the frame and header layer, then those of the conversation.
const (
	HeaderTooLong  Rule = "header_too_long"  // the length says more than the limit
	PayloadTooLong Rule = "payload_too_long" // the length says more than the limit
	EmptyHeader    Rule = "empty_header"     // header length 0
	Truncated      Rule = "truncated"        // end of file inside a frame
	HeaderNotUTF8  Rule = "header_not_utf8"
	HeaderNotJSON  Rule = "header_not_json"
	HeaderTooDeep  Rule = "header_too_deep" // nested deeper than MaxDepth
	BadMessage     Rule = "bad_message"     // not one of the four shapes
	BadJSONRPC     Rule = "bad_jsonrpc"     // jsonrpc is not "2.0"
	BadID          Rule = "bad_id"          // id is not a string
	BadParams      Rule = "bad_params"      // a member of params, result or error has the wrong type

	UnknownID      Rule = "unknown_id"       // an answer to a request that was not sent or already answered
	UnknownJob     Rule = "unknown_job"      // a chunk of a call that is not running
	ChunkGap       Rule = "chunk_gap"        // chunk numbers must be 1, 2, 3, …
	ChunkCount     Rule = "chunk_count"      // the answer counts other chunks than arrived
	ChunkNotStream Rule = "chunk_not_stream" // a chunk of a call that did not ask for a stream
	BadProtocol    Rule = "bad_protocol"     // the chosen protocol version was not offered
)

// ProtocolError says which rule the peer broke and what was seen. The
// connection cannot be used after it: there is no way to resynchronise.
type ProtocolError struct {
	Rule   Rule
	Detail string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("protocol error (%s): %s", e.Rule, e.Detail)
}

// PeerAtFault reports whether the peer spoke wrongly, in contrast to having gone
// away in the middle of a frame. The supervisor asks for it to tell a worker that
// it has to kill from one that died.
func (e *ProtocolError) PeerAtFault() bool { return e.Rule != Truncated }

// Broken builds a ProtocolError.
func Broken(rule Rule, format string, args ...any) *ProtocolError {
	return &ProtocolError{Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// Excerpt quotes the beginning of what a peer sent, for the text of an error.
func Excerpt(b []byte) string {
	const most = 80
	if len(b) > most {
		return fmt.Sprintf("%q… (%d bytes)", b[:most], len(b))
	}
	return fmt.Sprintf("%q", b)
}

// LimitError says that a message of ours is longer than the limits in force.
// Nothing was sent; the connection is as it was.
type LimitError struct {
	What     string // "header" or "payload"
	Len, Max int
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("cannot send a %s of %d bytes: the limit is %d", e.What, e.Len, e.Max)
}
