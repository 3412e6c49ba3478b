package workercheck

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// check is one rule that a worker must hold to.
type check struct {
	name  string
	needs string // the capability without which it is skipped
	hello helloOptions
	// run says what was seen. It is called after hello was answered.
	run func(ctx context.Context, s *session) (seen string, err error)
}

const readyCheck = "ready"

// checks lists everything, in the order in which it is run.
func checks() []check {
	return []check{
		{name: readyCheck}, // session.checkReady
		{name: "unary", run: checkUnary},
		{name: "arguments", run: checkArguments},
		{name: "stream", needs: "stream", run: checkStream},
		{name: "stream-unary", needs: "stream", run: checkStreamUnary},
		{name: "error-shape", run: checkErrorShape},
		{name: "error-then-call", run: checkErrorThenCall},
		{name: "unknown-method", run: checkUnknownMethod},
		{name: "unknown-members", run: checkUnknownMembers},
		{name: "task", needs: "task", run: checkTask},
		{name: "surface", needs: "surface", run: checkSurface},
		{name: "second-hello", run: checkSecondHello},
		{name: "ping", run: checkPing},
		{name: "ping-during-call", needs: "control", run: checkPingDuringCall},
		{name: "cancel-unknown", run: checkCancelUnknown},
		{name: "cancel-cooperative", needs: "cancel", run: checkCancelCooperative},
		{name: "cancel-interrupt", needs: "interrupt", run: checkCancelInterrupt},
		{name: "concurrent", needs: "concurrent", hello: helloOptions{concurrency: 2}, run: checkConcurrent},
		{name: "payload-1MiB", run: checkPayload(1 << 20)},
		{name: "payload-50MiB", run: checkPayload(50 << 20)},
		{name: "payload-over-limit", hello: helloOptions{limits: wire.Limits{MaxPayload: 1 << 20}}, run: checkPayloadOverLimit},
		{name: "stdout-noise", run: checkStdoutNoise},
		{name: "socket-private", run: checkSocketPrivate},
		{name: "header-too-long", run: checkBroken("a header of 2 GiB", []byte{0x80, 0, 0, 0, 0, 0, 0, 0})},
		{name: "header-not-json", run: checkBroken("a header that is no JSON", wire.AppendFrame(nil, []byte("GET / HTTP/1.1"), nil))},
		{name: "shutdown", run: checkShutdown},
		{name: "end-of-file", run: checkEndOfFile},
		{name: "end-of-file-in-call", needs: "control", run: checkEndOfFileInCall},
	}
}

// hello greets the worker and reads its ready record.
func (s *session) hello(ctx context.Context) (ready, error) {
	limits := s.options.limits.OrDefaults()
	params := fmt.Sprintf(`{"protocol":[1],"instance":"check","plugin":"check","module":"","class":"","dirs":{},"limits":{"max_header":%d,"max_payload":%d},"concurrency":%d}`,
		limits.MaxHeader, limits.MaxPayload, max(1, s.options.concurrency))
	f, _, err := s.call(ctx, "hello", params, []byte(`{}`))
	if err != nil {
		return ready{}, err
	}
	if f.err != nil {
		return ready{}, fmt.Errorf("hello was answered with error %d %q", f.err.Code, f.err.Message)
	}
	var r ready
	if err := json.Unmarshal(f.result, &r); err != nil {
		return ready{}, fmt.Errorf("the ready record %s: %w", f.result, err)
	}
	s.ready = r
	return r, r.check(s, f.payload)
}

// ready is the answer to hello.
type ready struct {
	Protocol     int      `json:"protocol"`
	Name         string   `json:"name"`
	Version      string   `json:"version"`
	Capabilities []string `json:"capabilities"`
	PID          int      `json:"pid"`
	Runtime      string   `json:"runtime"`
}

func (r ready) check(s *session, payload []byte) error {
	switch {
	case r.Protocol != 1:
		return fmt.Errorf("the ready record chooses protocol %d; 1 was offered", r.Protocol)
	case r.Name == "":
		return fmt.Errorf("the ready record has no name")
	case r.Capabilities == nil:
		return fmt.Errorf("the ready record has no list of capabilities")
	case !inGroup(r.PID, s.pgid):
		return fmt.Errorf("the ready record says pid %d, which is no process of the group %d that was started", r.PID, s.pgid)
	}
	if len(payload) == 0 {
		return nil
	}
	var more struct{ Schema, Config map[string]any }
	if err := json.Unmarshal(payload, &more); err != nil {
		return fmt.Errorf("the payload of the ready record: %w: %s", err, wire.Excerpt(payload))
	}
	return nil
}

func (s *session) checkReady(ctx context.Context, rep *Report) (string, error) {
	begin := time.Now()
	r, err := s.hello(ctx)
	if err != nil {
		return "", s.explain(err)
	}
	rep.Name, rep.Version, rep.Runtime, rep.Capabilities = r.Name, r.Version, r.Runtime, r.Capabilities
	return fmt.Sprintf("%s %s (%s) after %v, capabilities %v", r.Name, r.Version, r.Runtime, time.Since(begin).Round(time.Millisecond), r.Capabilities), nil
}

// value checks that a call ended well and compares its result.
func value(f frame, err error, want string) error {
	switch {
	case err != nil:
		return err
	case f.err != nil:
		return fmt.Errorf("the call failed: %d %q", f.err.Code, f.err.Message)
	case !sameJSON(f.payload, []byte(want)):
		return fmt.Errorf("the result is %s, want %s", wire.Excerpt(f.payload), wire.Excerpt([]byte(want)))
	}
	return nil
}

func checkUnary(ctx context.Context, s *session) (string, error) {
	for i := range 3 { // a worker is kept between calls
		kwargs := fmt.Sprintf(`{"op":"echo","i":%d}`, i)
		f, _, err := s.execute(ctx, fmt.Sprintf("j%d", i), false, kwargs)
		if err := value(f, err, `{"args":[],"kwargs":`+kwargs+`}`); err != nil {
			return "", err
		}
	}
	return "three calls, one after the other", nil
}

func checkArguments(ctx context.Context, s *session) (string, error) {
	payload := `{"args":["grüße 😀 \u2028",1e-7,-0,12345678901234567,null,[[],{}],"\"\\\n"],"kwargs":{"op":"echo","é":{"deep":[true,false]}}}`
	f, _, err := s.call(ctx, "execute", `{"job":"j1","attempt":1,"stream":false,"dir":""}`, []byte(payload))
	if err := value(f, err, payload); err != nil {
		return "", err
	}
	return "unicode, numbers, null and nesting came back as they were", nil
}

// chunks checks the chunks of a job among notifications.
func chunks(list []frame, job string) (int, error) {
	n := 0
	for _, f := range list {
		if f.method != "chunk" {
			continue
		}
		var p struct {
			Job string `json:"job"`
			N   int    `json:"n"`
		}
		if err := json.Unmarshal(f.params, &p); err != nil {
			return n, fmt.Errorf("a chunk has params %s: %w", f.params, err)
		}
		if n++; p.Job != job || p.N != n {
			return n, fmt.Errorf("a chunk says job %q n %d, want job %q n %d", p.Job, p.N, job, n)
		}
		if !sameJSON(f.payload, fmt.Append(nil, n)) {
			return n, fmt.Errorf("chunk %d is %s", n, wire.Excerpt(f.payload))
		}
	}
	return n, nil
}

func checkStream(ctx context.Context, s *session) (string, error) {
	const want = 200
	f, before, err := s.execute(ctx, "j1", true, fmt.Sprintf(`{"op":"count","to":%d}`, want))
	if err := value(f, err, fmt.Sprint(want)); err != nil {
		return "", err
	}
	n, err := chunks(before, "j1")
	if err != nil {
		return "", err
	}
	var r struct {
		Chunks *int `json:"chunks"`
	}
	if err := json.Unmarshal(f.result, &r); err != nil || n != want || r.Chunks == nil || *r.Chunks != want {
		return "", fmt.Errorf("%d chunks came before the answer, which says %s; want %d", n, f.result, want)
	}
	return fmt.Sprintf("%d chunks, numbered without a gap, all before the answer", n), nil
}

func checkStreamUnary(ctx context.Context, s *session) (string, error) {
	f, before, err := s.execute(ctx, "j1", false, `{"op":"count","to":5}`)
	if err := value(f, err, "5"); err != nil {
		return "", err
	}
	if n, _ := chunks(before, "j1"); n > 0 {
		return "", fmt.Errorf("%d chunks came from a call with stream false", n)
	}
	return "no chunks where no stream was asked for", nil
}

func checkErrorShape(ctx context.Context, s *session) (string, error) {
	f, _, err := s.execute(ctx, "j1", false, `{"op":"fail","category":"transient","message":"told to fail","retriable":true}`)
	switch {
	case err != nil:
		return "", err
	case f.err == nil:
		return "", fmt.Errorf("a call that was told to fail ended well: %s", f.result)
	case f.err.Code != wire.CodePlugin:
		return "", fmt.Errorf("the error has code %d, want %d", f.err.Code, wire.CodePlugin)
	case f.err.Message != "told to fail" || f.err.Data.Category != "transient":
		return "", fmt.Errorf("the error says %q, category %q", f.err.Message, f.err.Data.Category)
	case f.err.Data.Retriable == nil || !*f.err.Data.Retriable:
		return "", fmt.Errorf("the error does not say retriable: true")
	}
	return fmt.Sprintf("code %d, category %s, type %q", f.err.Code, f.err.Data.Category, f.err.Data.Type), nil
}

func checkErrorThenCall(ctx context.Context, s *session) (string, error) {
	f, _, err := s.execute(ctx, "j1", false, `{"op":"no such thing"}`)
	if err != nil {
		return "", err
	}
	if f.err == nil || f.err.Data.Category != "user_input" {
		return "", fmt.Errorf("an unknown op was answered with %+v %s, want an error of category user_input", f.err, f.result)
	}
	f, _, err = s.execute(ctx, "j1", false, `{"op":"echo"}`)
	if err := value(f, err, `{"args":[],"kwargs":{"op":"echo"}}`); err != nil {
		return "", err
	}
	return "user_input for an unknown op; the same job id works afterwards", nil
}

func checkUnknownMethod(ctx context.Context, s *session) (string, error) {
	f, _, err := s.call(ctx, "frobnicate", `{}`, []byte("whatever"))
	if err != nil {
		return "", err
	}
	if f.err == nil || f.err.Code != wire.CodeUnknownMethod {
		return "", fmt.Errorf("an unknown request was answered with %+v %s, want error %d", f.err, f.result, wire.CodeUnknownMethod)
	}
	return fmt.Sprintf("error %d %q", f.err.Code, f.err.Message), nil
}

func checkUnknownMembers(ctx context.Context, s *session) (string, error) {
	if _, err := s.w.Send(ctx, []byte(`{"jsonrpc":"2.0","method":"weather","params":{"sunny":true}}`), []byte("ignored")); err != nil {
		return "", err
	}
	f, _, err := s.call(ctx, "execute", `{"job":"j1","attempt":1,"stream":false,"dir":"","colour":"blue","deep":{"id":"x","method":"y","job":"z"}}`,
		[]byte(`{"args":[],"kwargs":{"op":"echo"},"more":1}`))
	if err != nil {
		return "", err
	}
	if f.err != nil {
		return "", fmt.Errorf("a call with members nobody knows failed: %d %q", f.err.Code, f.err.Message)
	}
	return "an unknown notification and unknown members changed nothing", nil
}

func checkTask(ctx context.Context, s *session) (string, error) {
	for _, what := range []string{`"task":"no such task","method":"run"`, `"method":"no_such_method"`} {
		f, _, err := s.call(ctx, "execute", `{"job":"j1","attempt":1,"stream":false,"dir":"",`+what+`}`, []byte(`{"args":[],"kwargs":{}}`))
		if err != nil {
			return "", err
		}
		if f.err == nil || f.err.Code != wire.CodePlugin || f.err.Data.Category != "user_input" {
			return "", fmt.Errorf("{%s} was answered with %+v %s, want error %d of category user_input", what, f.err, f.result, wire.CodePlugin)
		}
	}
	return "user_input for a task and a method that are not there", nil
}

func checkSurface(ctx context.Context, s *session) (string, error) {
	f, _, err := s.call(ctx, "surface", `{}`, nil)
	if err != nil {
		return "", err
	}
	var surface struct {
		Methods []struct{ Name string }
		Tasks   []struct{ Task string }
	}
	if f.err != nil || json.Unmarshal(f.payload, &surface) != nil {
		return "", fmt.Errorf("surface was answered with %+v and the payload %.200q, want an object with methods and tasks", f.err, f.payload)
	}
	return fmt.Sprintf("%d methods, %d tasks", len(surface.Methods), len(surface.Tasks)), nil
}

func checkSecondHello(ctx context.Context, s *session) (string, error) {
	f, _, err := s.call(ctx, "hello", `{"protocol":[1]}`, []byte(`{}`))
	if err != nil {
		return "", err
	}
	if f.err == nil || f.err.Code != wire.CodeInvalidRequest {
		return "", fmt.Errorf("a second hello was answered with %+v %s, want error %d", f.err, f.result, wire.CodeInvalidRequest)
	}
	return fmt.Sprintf("error %d %q", f.err.Code, f.err.Message), nil
}

// ping returns how long the worker took to answer.
func ping(ctx context.Context, s *session) (time.Duration, error) {
	begin := time.Now()
	f, _, err := s.call(ctx, "ping", `{}`, nil)
	if err == nil && f.err != nil {
		err = fmt.Errorf("ping was answered with error %d %q", f.err.Code, f.err.Message)
	}
	return time.Since(begin), err
}

func checkPing(ctx context.Context, s *session) (string, error) {
	d, err := ping(ctx, s)
	return fmt.Sprintf("answered after %v", d.Round(time.Microsecond)), err
}

func checkStdoutNoise(ctx context.Context, s *session) (string, error) {
	const n = 1 << 20
	f, _, err := s.execute(ctx, "j1", false, fmt.Sprintf(`{"op":"noise","bytes":%d}`, n))
	if err := value(f, err, fmt.Sprint(n)); err != nil {
		return "", err
	}
	_, err = ping(ctx, s)
	return "1 MiB on stdout, and the protocol went on", err
}
