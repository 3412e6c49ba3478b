package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// dispatch routes one frame. Its error ends the connection.
func (c *Conn) dispatch(h wire.Header, payloadLen int) error {
	if h.Method == nil {
		return c.takeAnswer(h)
	}
	if h.HasID {
		return c.refuse(h)
	}
	switch string(h.Method) {
	case "chunk":
		return c.takeChunk(h.Params)
	case "progress":
		return c.takeProgress(h.Params)
	case "log":
		return c.takeLog(h.Params)
	case "usage":
		return c.takeUsage(h.Params)
	}
	return nil // an unknown notification; the reader skips its payload
}

// refuse answers a request: version 1 has none in this direction. The answer is
// written from the read loop: a worker that asks and does not read slows only
// itself.
func (c *Conn) refuse(h wire.Header) error {
	_, err := c.w.Send(context.Background(), appendUnknown(nil, h.ID, h.Method))
	var limit *wire.LimitError
	switch {
	case errors.As(err, &limit):
		return wire.Broken(wire.BadID, "a request with an id of %d bytes, which no answer can hold", len(h.ID))
	case err != nil:
		c.writeFailed(err)
	}
	return nil
}

// takeAnswer hands an answer to who waits for it.
func (c *Conn) takeAnswer(h wire.Header) error {
	req := c.calls.take(h.ID)
	if req == nil {
		return wire.Broken(wire.UnknownID, "an answer to request %s, which was not sent or already answered", wire.Excerpt(h.ID))
	}
	payload, err := c.r.TakePayload()
	if err != nil {
		return err
	}
	ans := answer{payload: payload}
	switch {
	case h.Error != nil:
		if ans.failure, err = parseFailure(h.Error); err != nil {
			return err
		}
	case req.run != nil:
		if err := ans.readResult(h.Result, req.run); err != nil {
			return err
		}
	default:
		ans.result = bytes.Clone(h.Result)
	}
	if req.method == methodHello {
		return c.takeReady(ans)
	}
	req.answered <- ans
	return nil
}

// readResult reads the result object of an execute.
func (a *answer) readResult(raw []byte, run *running) error {
	for o := wire.NewObject(raw); o.Next(); {
		if wire.IsNull(o.Value) {
			continue
		}
		ok := true
		switch string(o.Key) {
		case "chunks":
			var n int64
			if n, ok = wire.Int(o.Value); ok {
				if err := run.check(n, run.job); err != nil {
					return err
				}
			}
		case "content_type":
			var s []byte
			s, ok = wire.Text(o.Value)
			a.contentType = string(s)
		case "cancelled":
			a.cancelled, ok = wire.Bool(o.Value)
		}
		if !ok {
			return badMember("the answer to execute", o)
		}
	}
	return nil
}

func badMember(where string, o wire.Object) error {
	return wire.Broken(wire.BadParams, "%s: %q has the wrong type: %s", where, o.Key, wire.Excerpt(o.Value))
}

// takeReady reads the answer to hello.
func (c *Conn) takeReady(ans answer) error {
	if ans.failure != nil {
		c.readyErr = ans.failure.callError(ans.payload)
		close(c.ready)
		return nil
	}
	r := supervisor.Ready{}
	if err := json.Unmarshal(ans.result, &r); err != nil {
		return wire.Broken(wire.BadParams, "the answer to hello: %v: %s", err, wire.Excerpt(ans.result))
	}
	if r.Protocol != ProtocolVersion {
		return wire.Broken(wire.BadProtocol, "the worker chose protocol %d; version %d was offered", r.Protocol, ProtocolVersion)
	}
	var more struct{ Schema, Config json.RawMessage }
	if len(ans.payload) > 0 {
		if err := json.Unmarshal(ans.payload, &more); err != nil {
			return wire.Broken(wire.BadParams, "the payload of the answer to hello: %v: %s", err, wire.Excerpt(ans.payload))
		}
	}
	r.Schema, r.Config = nullToNil(more.Schema), nullToNil(more.Config)
	c.readyValue = r
	close(c.ready)
	return nil
}

func nullToNil(raw json.RawMessage) json.RawMessage {
	if wire.IsNull(raw) {
		return nil
	}
	return raw
}

// takeChunk checks the number of a chunk and hands it on.
func (c *Conn) takeChunk(params []byte) error {
	var job []byte
	var n int64
	for o := wire.NewObject(params); o.Next(); {
		ok := true
		switch string(o.Key) {
		case "job":
			job, ok = wire.Text(o.Value)
		case "n":
			n, ok = wire.Int(o.Value)
		}
		if !ok {
			return badMember("a chunk", o)
		}
	}
	run := c.calls.job(job)
	switch {
	case run == nil:
		return wire.Broken(wire.UnknownJob, "a chunk of job %s, which is not running", wire.Excerpt(job))
	case !run.stream:
		return wire.Broken(wire.ChunkNotStream, "a chunk of job %q, which did not ask for a stream", run.job)
	case n != int64(run.chunks)+1:
		return wire.Broken(wire.ChunkGap, "job %q sent chunk %d after chunk %d", run.job, n, run.chunks)
	}
	payload, err := c.r.Payload()
	if err != nil {
		return err
	}
	run.chunks++
	run.chunk(run.chunks, payload)
	return nil
}

// takeProgress hands progress to its call, or to the events callback when it is
// of none. Progress of a call that has ended is late and says nothing new.
func (c *Conn) takeProgress(params []byte) error {
	var job, message []byte
	fraction := -1.0
	for o := wire.NewObject(params); o.Next(); {
		if wire.IsNull(o.Value) {
			continue
		}
		ok := true
		switch string(o.Key) {
		case "job":
			job, ok = wire.Text(o.Value)
		case "fraction":
			fraction, ok = wire.Float(o.Value)
		case "message":
			message, ok = wire.Text(o.Value)
		}
		if !ok {
			return badMember("progress", o)
		}
	}
	if fraction < 0 {
		fraction = -1
	}
	fraction = min(fraction, 1)
	if len(job) == 0 {
		c.events(supervisor.ConnEvent{Progress: &supervisor.Progress{Fraction: fraction, Message: string(message)}})
		return nil
	}
	if run := c.calls.job(job); run != nil {
		run.tell(func(s supervisor.Sink) { s.Progress(fraction, string(message)) })
	}
	return nil
}

// takeLog hands a log record to its call, or to the events callback when it is
// of none or its call has ended.
func (c *Conn) takeLog(params []byte) error {
	rec := supervisor.LogRecord{Level: "info"}
	for o := wire.NewObject(params); o.Next(); {
		if wire.IsNull(o.Value) {
			continue
		}
		var text []byte
		ok := true
		switch string(o.Key) {
		case "time":
			var t float64
			if t, ok = wire.Float(o.Value); ok {
				rec.Time = unixTime(t)
			}
			if !ok {
				return badMember("a log record", o)
			}
			continue
		case "job", "level", "message", "logger", "stream":
			text, ok = wire.Text(o.Value)
		}
		if !ok {
			return badMember("a log record", o)
		}
		switch s := string(text); string(o.Key) {
		case "job":
			rec.Call = s
		case "level":
			rec.Level = level(s)
		case "message":
			rec.Message = s
		case "logger":
			rec.Logger = s
		case "stream":
			rec.Stream = s
		}
	}
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	if run := c.calls.job([]byte(rec.Call)); run != nil {
		run.tell(func(s supervisor.Sink) { s.Log(rec) })
		return nil
	}
	c.events(supervisor.ConnEvent{Log: &rec})
	return nil
}

// level maps what logging libraries say to the four levels of the protocol.
func level(s string) string {
	switch s {
	case "debug", "info", "warning", "error":
		return s
	case "critical", "fatal":
		return "error"
	case "warn":
		return "warning"
	case "trace":
		return "debug"
	}
	return "info"
}

func unixTime(t float64) time.Time {
	if math.Abs(t) > 1<<40 {
		return time.Time{} // no time of day; the record gets that of its arrival
	}
	sec, frac := math.Modf(t)
	return time.Unix(int64(sec), int64(frac*1e9))
}

// takeUsage hands the worker's account of its memory to the events callback.
func (c *Conn) takeUsage(params []byte) error {
	u := supervisor.Usage{Devices: map[string]int64{}, Reported: time.Now()}
	for o := wire.NewObject(params); o.Next(); {
		if wire.IsNull(o.Value) {
			continue
		}
		switch string(o.Key) {
		case "max_rss":
			n, ok := wire.Int(o.Value)
			if !ok {
				return badMember("usage", o)
			}
			u.MaxRSS = n
		case "devices", "max_devices":
			if !wire.IsObject(o.Value) {
				return badMember("usage", o)
			}
			on := map[string]int64{}
			for d := wire.NewObject(o.Value); d.Next(); {
				n, ok := wire.Int(d.Value)
				if !ok {
					return badMember("usage of a device", d)
				}
				on[string(d.Key)] = n
			}
			if string(o.Key) == "devices" {
				u.Devices = on
			} else {
				u.MaxDevices = on
			}
		}
	}
	c.events(supervisor.ConnEvent{Usage: &u})
	return nil
}
