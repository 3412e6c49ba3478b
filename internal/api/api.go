// Package api serves the HTTP API that api/openapi.yaml describes: access,
// strict decoding, handlers, server-sent events, problems. It holds no state of
// its own but tokens and counts of open streams, and no handler starts a
// goroutine that outlives its request. What it needs of the rest of the daemon
// stands in contracts.go. Start with routes.go, the list of all that is served,
// then one file per noun.
package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/api/wire"
)

// Options of the handler. What has no comment is required.
type Options struct {
	Jobs      Jobs
	Lifecycle Lifecycle
	Ledger    Ledger
	Plugins   Plugins
	Secrets   Secrets
	Workers   Workers
	Machine   Machine
	Feed      Feed
	Tokens    *Tokens
	Access    AccessOptions
	Log       *zap.Logger

	// Gatherer serves /metrics; nil means an empty answer.
	Gatherer prometheus.Gatherer
	// BaseURL is where a browser on this machine reaches the API over TCP; nil or
	// "" means that it cannot.
	BaseURL func() string
	// Ready says why the daemon may not take jobs; nil means that it always may.
	Ready func(context.Context) []string
	// Degraded says which plugins start nothing although the daemon takes jobs; nil
	// means none. Anybody may read it.
	Degraded func() []string
	// Live says why the process should be restarted; nil means never.
	Live    func(context.Context) []string
	Version VersionInfo
	// StreamsDone ends every event stream when it is done; HTTP shuts down after.
	// nil means that streams end with their requests alone.
	StreamsDone context.Context
	Limits      func() Limits // asked for every request; nil means DefaultLimits
	// Heartbeat of event streams; 0 means 15 s.
	Heartbeat time.Duration
	// WriteTimeout is how long one write to a stalled stream may take before its
	// reader is dropped; 0 means 30 s.
	WriteTimeout time.Duration
	// BodyTimeout is how long a client may take to send a body; 0 means 30 s.
	BodyTimeout time.Duration
	Now         func() time.Time // nil means time.Now
}

// Limits protect the daemon from its clients.
type Limits struct {
	Job                 int64 // arguments of one job, in bytes
	Body                int64 // any other body: a batch of jobs, a configuration
	Depth               int   // deepest nesting of JSON
	Streams             int   // open event streams
	StreamsPerPrincipal int
	Wait                time.Duration // longest ?wait=
}

// DefaultLimits is used where nothing else is said.
func DefaultLimits() Limits {
	return Limits{Job: 1 << 20, Body: 16 << 20, Depth: 64, Streams: 1024, StreamsPerPrincipal: 256, Wait: 10 * time.Minute}
}

// VersionInfo is what /v1/version tells.
type VersionInfo struct{ Version, Commit, BuiltAt string }

// server implements wire.StrictServerInterface, one file per noun.
type server struct {
	o        Options
	log      *zap.Logger
	spec     *spec
	bodies   *bodies
	access   *access
	streams  *streamCount
	sessions *sessions
	metrics  http.Handler
}

// NewHandler returns the whole API as one handler. It starts nothing.
func NewHandler(o Options) (http.Handler, error) {
	if o.Jobs == nil || o.Lifecycle == nil || o.Ledger == nil || o.Plugins == nil || o.Secrets == nil || o.Workers == nil || o.Machine == nil || o.Feed == nil || o.Tokens == nil || o.Log == nil {
		return nil, errors.New("cannot build the API: something it needs was not given")
	}
	o = withDefaults(o)
	sp, err := loadSpec(api.Spec)
	if err != nil {
		return nil, err
	}
	acc, err := newAccess(o.Access, o.Tokens)
	if err != nil {
		return nil, err
	}
	acc.sessions = newSessions(o.Now)
	s := &server{o: o, log: o.Log, spec: sp, access: acc, streams: newStreamCount(), sessions: acc.sessions, metrics: metricsHandler(o.Gatherer)}
	s.bodies = newBodies(sp, o.Limits, o.BodyTimeout)
	return s.router(), nil
}

func withDefaults(o Options) Options {
	if o.Limits == nil {
		o.Limits = DefaultLimits
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = 15 * time.Second
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = 30 * time.Second
	}
	if o.BodyTimeout <= 0 {
		o.BodyTimeout = 30 * time.Second
	}
	if o.BaseURL == nil {
		o.BaseURL = func() string { return "" }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.StreamsDone == nil {
		o.StreamsDone = context.Background()
	}
	none := func(context.Context) []string { return nil }
	if o.Ready == nil {
		o.Ready = none
	}
	if o.Degraded == nil {
		o.Degraded = func() []string { return nil }
	}
	if o.Live == nil {
		o.Live = none
	}
	return o
}

// restOfPath ends a pattern whose last parameter may hold slashes.
const restOfPath = "{name...}"

// withName gives the rest of the path to the generated code.
func withName(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chi.RouteContext(r.Context()).URLParams.Add("name", chi.URLParam(r, "*"))
		next.ServeHTTP(w, r)
	})
}

// router mounts the rows of routes.go.
func (s *server) router() http.Handler {
	strict := wire.NewStrictHandlerWithOptions(s, []wire.StrictMiddlewareFunc{withRequest}, wire.StrictHTTPServerOptions{RequestErrorHandlerFunc: s.fail, ResponseErrorHandlerFunc: s.fail})
	gen := &wire.ServerInterfaceWrapper{Handler: strict, ErrorHandlerFunc: s.fail}

	r := chi.NewRouter()
	r.NotFound(func(w http.ResponseWriter, req *http.Request) { s.fail(w, req, &requestError{Code: codeNotFound}) })
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) {
		for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			if r.Match(chi.NewRouteContext(), m, req.URL.Path) {
				w.Header().Add("Allow", m)
			}
		}
		s.fail(w, req, &requestError{Code: codeMethod})
	})
	for _, row := range routes(gen) {
		h := s.bodies.check(row.op, row.handler, s.fail)
		if strings.HasPrefix(row.pattern, "/v1/") { // probes and scrapers append what they like
			h = s.knownQuery(s.spec.query[row.op], h)
		}
		pattern := row.pattern
		if base, ok := strings.CutSuffix(pattern, restOfPath); ok {
			pattern, h = base+"*", withName(h)
		}
		r.Method(row.method, pattern, s.authorize(row.role, h))
	}
	return s.outer(r)
}
