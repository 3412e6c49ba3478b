package api

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/suggest"
)

// fixedHeaders keep a browser from doing harm with what is answered. They are
// few on purpose: with those of a submit they fit the first bucket of a map.
var fixedHeaders = []struct {
	name  string
	value []string
}{
	{"X-Content-Type-Options", []string{"nosniff"}},
	{"Content-Security-Policy", []string{"default-src 'none'; frame-ancestors 'none'"}},
	{"Cross-Origin-Resource-Policy", []string{"same-origin"}},
	{"Cache-Control", []string{"no-store"}},
}

// requestInfo is what is known about a request; one value in the context, because
// each costs a copy of the request. who is set once, by authorize, before any
// handler runs.
type requestInfo struct {
	id  string
	who Principal
}

func infoOf(ctx context.Context) requestInfo {
	if info, ok := ctx.Value(keyInfo).(*requestInfo); ok {
		return *info
	}
	return requestInfo{}
}

func principalOf(ctx context.Context) Principal { return infoOf(ctx).who }
func requestID(ctx context.Context) string      { return infoOf(ctx).id }

// outer is what every request passes, known address or not: a request id, the
// headers that keep browsers from doing harm, the guard against foreign pages,
// one line in the log, and a net under panics.
func (s *server) outer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.o.Now()
		info := &requestInfo{id: newRequestID()}
		r = r.WithContext(context.WithValue(r.Context(), keyInfo, info))
		h := w.Header()
		for _, fixed := range fixedHeaders {
			h[fixed.name] = fixed.value // shared: nothing below may append to them
		}
		h.Set("X-Request-Id", info.id)
		rec := &recorder{ResponseWriter: w, timeout: s.o.WriteTimeout}
		defer s.finish(rec, r, start)
		if r.ContentLength != 0 {
			// Before anyone is known: net/http reads what is left of a body also after
			// a refusal, and would wait for it for ever. Not to be had without a
			// socket, where nothing can stall.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.o.BodyTimeout))
		}
		if err := s.access.guard(r); err != nil {
			s.fail(rec, r, err)
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// finish logs the request. A panic of a handler ends its request, not the daemon.
func (s *server) finish(rec *recorder, r *http.Request, start time.Time) {
	if v := recover(); v != nil {
		if v == http.ErrAbortHandler { //nolint:errorlint // the value itself, by contract of net/http
			panic(v)
		}
		s.log.Error("a handler panicked", zap.String("request", requestID(r.Context())), zap.String("path", r.URL.Path),
			zap.String("panic", fmt.Sprint(v)), zap.ByteString("stack", debug.Stack()))
		if rec.status == 0 {
			writeProblem(rec, problemOf(r, &requestError{Code: codeInternal}), 0)
		}
	}
	if ce := s.log.Check(zap.DebugLevel, "request"); ce != nil {
		// The path alone: a query may hold what does not belong into a log.
		ce.Write(zap.String("request", requestID(r.Context())), zap.String("method", r.Method), zap.String("path", r.URL.Path),
			zap.Int("status", rec.status), zap.Int64("bytes", rec.bytes), zap.Duration("took", s.o.Now().Sub(start)),
			zap.String("principal", principalOf(r.Context()).Name))
	}
}

// authorize lets only those pass whose role covers the route's.
func (s *server) authorize(least Role, next http.Handler) http.Handler {
	if least == RoleNone {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := s.access.identify(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if info, ok := r.Context().Value(keyInfo).(*requestInfo); ok {
			info.who = who
		}
		if !who.Role.Covers(least) {
			s.fail(w, r, &requestError{Code: codeForbidden, Detail: fmt.Sprintf("This needs the role %s; the caller has %s.", least, who.Role)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knownQuery refuses query parameters that the operation does not have: a
// misspelt filter would list everything, a misspelt wait would not wait.
func (s *server) knownQuery(known []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "" {
			next.ServeHTTP(w, r)
			return
		}
		given, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			s.fail(w, r, &requestError{Code: codeInvalidParameter, Detail: "The query part of the address cannot be decoded.", Cause: err})
			return
		}
		for _, name := range sortedKeys(given) {
			if slices.Contains(known, name) {
				continue
			}
			fe := wire.FieldError{Pointer: "?" + name, Message: "is no parameter of this operation", Suggestion: suggest.Nearest(name, known)}
			if fe.Suggestion != "" {
				fe.Message += fmt.Sprintf("; did you mean %q?", fe.Suggestion)
			}
			s.fail(w, r, &requestError{Code: codeInvalidParameter, Fields: []wire.FieldError{fe}})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// recorder remembers what was answered, and gives each write a deadline, so that
// a client which takes nothing holds nothing for long.
type recorder struct {
	http.ResponseWriter
	timeout time.Duration // 0: deadlines are set by somebody else
	status  int
	bytes   int64
}

// ownDeadlines tells a recorder that its writer sets deadlines itself.
func ownDeadlines(w http.ResponseWriter) {
	if rec, ok := w.(*recorder); ok {
		rec.timeout = 0
	}
}

func (r *recorder) extend() {
	if r.timeout > 0 {
		// Where it cannot be had, as in tests without a socket, nothing can stall.
		_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Now().Add(r.timeout))
	}
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
		r.extend()
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.extend()
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// newRequestID is for finding a line in a log, not for guarding anything.
func newRequestID() string {
	var b [8]byte
	n := rand.Uint64()
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
	return hex.EncodeToString(b[:])
}

// withRequest lets a handler of the generated strict form reach its request,
// for what the form hides: ranges, Accept, conditions.
func withRequest(next wire.StrictHandlerFunc, op string) wire.StrictHandlerFunc {
	switch op {
	case "GetResult", "GetJobFile", "HeadJobFile", "PutJobFile", "GetJobLogs", "GetPluginLogs", "Metrics", "Login":
	default:
		return next
	}
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) (any, error) {
		return next(context.WithValue(ctx, keyRequest, r), w, r, req)
	}
}

// requestOf is the request of an operation named in withRequest.
func requestOf(ctx context.Context) *http.Request {
	r, _ := ctx.Value(keyRequest).(*http.Request)
	return r
}
