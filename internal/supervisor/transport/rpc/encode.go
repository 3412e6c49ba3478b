package rpc

import (
	"fmt"
	"strconv"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// Methods that this side treats in their own way.
const (
	methodHello    = "hello"
	methodExecute  = "execute"
	methodCancel   = "cancel"
	methodShutdown = "shutdown"
)

// capabilityTask is what a worker lists that takes task and method in execute.
const capabilityTask = "task"

// Parts of an execute payload, which is put together without a parse. They are
// only ever read.
var (
	emptyArray  = []byte("[]")
	emptyObject = []byte("{}")
	argsOpen    = []byte(`{"args":`)
	kwargsOpen  = []byte(`,"kwargs":`)
	objectClose = []byte("}")
)

// envelopeDepth is how many containers of the header are around an envelope.
const envelopeDepth = 2

// checkCall refuses what would make a bad header.
func checkCall(call supervisor.Call) error {
	if call.ID == "" {
		return fmt.Errorf("cannot execute a call without an id")
	}
	if len(call.Envelope) > 0 {
		if err := wire.CheckValue(call.Envelope, envelopeDepth); err != nil {
			return &supervisor.CallError{Category: "user_input", Message: fmt.Sprintf("the envelope is no JSON: %v", err)}
		}
	}
	return nil
}

// Headers are appended by hand: encoding/json would cost more than the rest of
// a round trip on this side.

func appendRequest(b []byte, id, method string, params []byte) []byte {
	b = append(b, `{"jsonrpc":"2.0","id":"`...)
	b = append(b, id...)
	b = append(b, `","method":`...)
	b = wire.AppendString(b, method)
	b = append(b, `,"params":`...)
	b = append(b, params...)
	return append(b, '}')
}

func appendExecute(b []byte, id string, call supervisor.Call) []byte {
	b = append(b, `{"jsonrpc":"2.0","id":"`...)
	b = append(b, id...)
	b = append(b, `","method":"execute","params":{"job":`...)
	b = wire.AppendString(b, call.ID)
	b = append(b, `,"attempt":`...)
	b = strconv.AppendInt(b, int64(call.Attempt), 10)
	b = append(b, `,"stream":`...)
	b = strconv.AppendBool(b, call.Stream)
	b = append(b, `,"dir":`...)
	b = wire.AppendString(b, call.Dir)
	if call.Task != "" {
		b = append(b, `,"task":`...)
		b = wire.AppendString(b, call.Task)
	}
	if call.Method != "" {
		b = append(b, `,"method":`...)
		b = wire.AppendString(b, call.Method)
	}
	if len(call.Envelope) > 0 {
		b = append(b, `,"envelope":`...)
		b = append(b, call.Envelope...)
	}
	return append(b, "}}"...)
}

func appendCancel(b []byte, id, job string, mode supervisor.CancelMode) []byte {
	b = append(b, `{"jsonrpc":"2.0","id":"`...)
	b = append(b, id...)
	b = append(b, `","method":"cancel","params":{"job":`...)
	b = wire.AppendString(b, job)
	b = append(b, `,"mode":"`...)
	b = append(b, mode...)
	return append(b, `"}}`...)
}

// appendUnknown answers a request that this side does not know.
func appendUnknown(b, id, method []byte) []byte {
	b = append(b, `{"jsonrpc":"2.0","id":`...)
	b = wire.AppendString(b, string(id))
	b = append(b, `,"error":{"code":`...)
	b = strconv.AppendInt(b, wire.CodeUnknownMethod, 10)
	b = append(b, `,"message":`...)
	b = wire.AppendString(b, fmt.Sprintf("the daemon has no method %.60q", method))
	return append(b, "}}"...)
}
