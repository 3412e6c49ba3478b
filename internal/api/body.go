package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/api/strict"
)

// maxPooled bounds the buffers that are kept between requests.
const maxPooled = 256 << 10

// bodies checks request bodies against the description before a handler sees
// them: content type, size, strict syntax, schema. The generated code then
// decodes bytes that are known to be good.
type bodies struct {
	spec   *spec
	limits func() Limits
	// timeout is how long a body may take that is read as it comes, for each
	// steadyStep bytes.
	timeout time.Duration
	pool    sync.Pool
}

func newBodies(s *spec, limits func() Limits, timeout time.Duration) *bodies {
	return &bodies{spec: s, limits: limits, timeout: timeout, pool: sync.Pool{New: func() any { return new(bytes.Buffer) }}}
}

// besideArgs is what a submission may hold besides its arguments.
const besideArgs = 64 << 10

// largest is the longest body that op may have.
func (l Limits) largest(op string) int64 {
	switch op {
	case "submitJob", "putJob", "execute", "executeStream":
		return l.Job + besideArgs
	}
	return l.Body
}

// check returns the handler for one operation that has a body.
func (b *bodies) check(op string, next http.Handler, fail func(http.ResponseWriter, *http.Request, error)) http.Handler {
	rule := b.spec.rules[op]
	if rule == nil && b.spec.streams[op] {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := plainBody(r); err != nil {
				fail(w, r, err)
				return
			}
			r.Body = newSteadyBody(w, r.Body, b.timeout)
			next.ServeHTTP(w, r)
		})
	}
	if rule == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength != 0 { // a body that nobody asked for is a mistake of the caller
				fail(w, r, &requestError{Code: codeUnexpectedBody, Detail: "This operation takes no body."})
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !rule.required && (r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0) {
			r.Body = io.NopCloser(bytes.NewReader([]byte("{}")))
			next.ServeHTTP(w, r)
			return
		}
		if b.spec.streams[op] && strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), multipartForm) {
			if err := plainBody(r); err != nil {
				fail(w, r, err)
				return
			}
			r.Header.Set("Content-Type", multipartForm+r.Header.Get("Content-Type")[len(multipartForm):]) // as the generated code looks for it
			body := newSteadyBody(w, r.Body, b.timeout)
			r.Body = body
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyBody, body)))
			return
		}
		if err := jsonType(r); err != nil {
			fail(w, r, err)
			return
		}
		buf, _ := b.pool.Get().(*bytes.Buffer)
		buf.Reset()
		defer func() {
			if buf.Cap() <= maxPooled {
				b.pool.Put(buf)
			}
		}()
		if err := readBody(w, r, buf, b.limits().largest(op)); err != nil {
			fail(w, r, err)
			return
		}
		if err := b.verify(rule, buf.Bytes()); err != nil {
			fail(w, r, err)
			return
		}
		// The decoder copies what it keeps, so the buffer may go back to the pool.
		r.Body = io.NopCloser(bytes.NewReader(buf.Bytes()))
		next.ServeHTTP(w, r)
	})
}

func (b *bodies) verify(rule *bodyRule, data []byte) error {
	tree, err := strict.Scan(data, rule.shape, b.limits().Depth)
	if err != nil {
		return err
	}
	if err := rule.schema.Validate(tree); err != nil {
		return &requestError{Code: codeInvalidBody, Fields: b.spec.fieldErrors(err)}
	}
	return nil
}

func jsonType(r *http.Request) error {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	cs := params["charset"]
	if err != nil || kind != "application/json" || cs != "" && cs != "utf-8" && cs != "UTF-8" {
		return &requestError{Code: codeContentType,
			Detail: "The body has to be JSON.", Next: "Send the header Content-Type: application/json."}
	}
	if given := r.Header.Get("Content-Type"); !strings.HasPrefix(given, kind) {
		r.Header.Set("Content-Type", kind) // as the generated code looks for it
	}
	return plainBody(r)
}

const multipartForm = "multipart/form-data"

// plainBody refuses a body that is compressed.
func plainBody(r *http.Request) error {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return &requestError{Code: codeContentEncoding,
			Detail: "The body must not be compressed.", Next: "Send it without Content-Encoding."}
	}
	return nil
}

// steadyBody is a body without a bound in time, as long as it comes steadily: the
// deadline moves on with every steadyStep bytes.
type steadyBody struct {
	io.ReadCloser
	deadline func(time.Time)
	timeout  time.Duration
	since    int
}

const steadyStep = 64 << 10

func newSteadyBody(w http.ResponseWriter, body io.ReadCloser, timeout time.Duration) *steadyBody {
	rc := http.NewResponseController(w)
	b := &steadyBody{ReadCloser: body, timeout: timeout,
		deadline: func(t time.Time) { _ = rc.SetReadDeadline(t) }} // without a socket nothing can stall
	b.extend()
	return b
}

func (b *steadyBody) extend() { b.deadline(time.Now().Add(b.timeout)) }

// bodyRead takes the deadline of the body away once all that matters of it is
// read: a wait may follow.
func bodyRead(ctx context.Context) {
	if b, ok := ctx.Value(keyBody).(*steadyBody); ok {
		b.deadline(time.Time{})
	}
}

func (b *steadyBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.since += n; b.since >= steadyStep {
		b.since = 0
		b.extend()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = &requestError{Code: codeBodyUnreadable, Detail: "The body could not be read to its end.", Cause: err}
	}
	return n, err
}

func readBody(w http.ResponseWriter, r *http.Request, buf *bytes.Buffer, limit int64) error {
	if r.ContentLength > limit {
		return tooLarge(limit)
	}
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit))
	if err == nil { // the deadline of outer was for the body; a wait may follow
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	var over *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &over):
		return tooLarge(limit)
	default:
		return &requestError{Code: codeBodyUnreadable, Detail: "The body could not be read to its end."}
	}
}

func tooLarge(limit int64) error {
	return &requestError{Code: codeBodyTooLarge, Detail: fmt.Sprintf("The body is longer than %d bytes.", limit)}
}
