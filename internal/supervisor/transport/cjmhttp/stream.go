package cjmhttp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// lineBuffer is what a line may have without being copied.
const lineBuffer = 64 << 10

// peerError ends a connection because of what the worker said.
type peerError struct{ say string }

func (e *peerError) Error() string { return e.say }

// PeerAtFault tells the supervisor that waiting for a polite end is useless.
func (e *peerError) PeerAtFault() bool { return true }

// stream reads lines of JSON: each is a chunk, and the last may be an error.
func (c *Conn) stream(ctx context.Context, r *run, resp *http.Response) (supervisor.Result, error) {
	if resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 {
		c.fail(&peerError{"the worker sent a stream that has no end of its own: a worker that died could not be told from one that is done"})
		return supervisor.Result{}, c.err
	}
	s := &stream{run: r, untyped: c.blocks()}
	lines := bufio.NewReaderSize(resp.Body, lineBuffer)
	var long []byte
	for {
		line, err := readLine(lines, long[:0], c.hello.Limits.MaxPayload)
		var tooLong *tooLongError
		switch {
		case errors.As(err, &tooLong):
			c.fail(&peerError{fmt.Sprintf("a chunk is longer than the limit of %d bytes", tooLong.limit)})
			return supervisor.Result{}, c.err
		case err != nil && err != io.EOF: // not errors.Is: the reason of a lost connection may hold an EOF, too
			return supervisor.Result{}, c.broken(ctx, err)
		}
		s.take(bytes.TrimSpace(line))
		long = line
		if err != nil {
			return s.end()
		}
	}
}

// readLine returns one line, of any length up to most. buf is room that may be used.
func readLine(r *bufio.Reader, buf []byte, most int) ([]byte, error) {
	for {
		part, err := r.ReadSlice('\n')
		buf = append(buf, part...)
		if len(buf) > most {
			return nil, &tooLongError{most}
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return buf, err
		}
	}
}

// stream is what became of the lines so far.
type stream struct {
	run     *run
	untyped bool // errors are {"error": text}, which may be a chunk as well
	n       uint64
	held    []byte // such a line: only the last one is an error
	failure *supervisor.CallError
}

// take judges one line. After an error the rest is read and dropped: the call is
// over when the worker says so, not when this side has seen enough.
func (s *stream) take(line []byte) {
	if len(line) == 0 || s.failure != nil {
		return
	}
	if s.held != nil {
		s.chunk(s.held)
		s.held = nil
	}
	switch {
	case s.untyped && looksLikeError(line):
		s.held = bytes.Clone(line)
	case !s.untyped && bytes.Contains(line, []byte(`"_job_error"`)) && jobError(line) != nil:
		s.failure = jobError(line)
	default:
		s.chunk(line)
	}
}

func (s *stream) chunk(line []byte) {
	if !json.Valid(line) {
		s.failure = &supervisor.CallError{Category: "fatal",
			Message: fmt.Sprintf("chunk %d is no JSON (NaN and Infinity are none): %.120q", s.n+1, line)}
		return
	}
	s.n++
	s.run.tell(func() { s.run.sink.Chunk(s.n, line) })
}

// end is the outcome after the last line.
func (s *stream) end() (supervisor.Result, error) {
	if s.held != nil {
		var e struct{ Error string }
		_ = json.Unmarshal(s.held, &e) // looksLikeError has done it before
		s.failure = withOOM(&supervisor.CallError{Category: "fatal", Message: orSay(cut(e.Error, maxMessage), "the plugin failed without a message")})
	}
	if s.failure != nil {
		return supervisor.Result{}, s.run.judge(s.failure)
	}
	return supervisor.Result{
		Payload: fmt.Appendf(nil, `{"chunks":%d}`, s.n), ContentType: "application/json", Chunks: s.n,
		// A generator obeys a cancel by ending; what it yielded is its partial result.
		Cancelled: s.run.asked.Load(),
	}, nil
}

// looksLikeError reports whether a line is an object with an error text and
// nothing else.
func looksLikeError(line []byte) bool {
	if !bytes.HasPrefix(line, []byte(`{"error"`)) {
		return false
	}
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil || len(fields) != 1 {
		return false
	}
	_, ok := fields["error"].(string)
	return ok
}
