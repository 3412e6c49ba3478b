package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api/strict"
	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// This file is the only place that joins errors to HTTP statuses. Everything
// else names a code.

// requestError is an error with a code of the table below. Detail is a
// sentence for the caller; it must not repeat submitted values.
type requestError struct {
	Code       string
	Detail     string
	Next       string // instead of the table's
	Fields     []wire.FieldError
	RetryAfter time.Duration
	Cause      error // for the log
}

func (e *requestError) Error() string {
	if e.Detail != "" {
		return e.Detail
	}
	return e.Code
}
func (e *requestError) Unwrap() error { return e.Cause }

// Codes are stable: clients may act on them.
const (
	codeInvalidJSON      = "invalid_json"
	codeDuplicateKey     = "duplicate_key"
	codeTooDeep          = "too_deep"
	codeInvalidBody      = "invalid_body"
	codeInvalidParameter = "invalid_parameter"
	codeUnexpectedBody   = "unexpected_body"
	codeContentType      = "content_type"
	codeContentEncoding  = "content_encoding"
	codeBodyUnreadable   = "body_unreadable"
	codeBodyTooLarge     = "body_too_large"
	codeBadMultipart     = "invalid_multipart"
	codeBadCursor        = "bad_cursor"
	codeBadEventID       = "bad_event_id"

	codeUnauthorized = "unauthorized"
	codeForbidden    = "forbidden"
	codeNotYours     = "not_your_job"
	codeBadHost      = "host_not_allowed"
	codeCrossOrigin  = "cross_origin"

	codeNotFound       = "not_found"
	codeMethod         = "method_not_allowed"
	codeJobNotFound    = "job_not_found"
	codePluginNotFound = "plugin_not_found"
	codeWorkerNotFound = "worker_not_found"
	codeTokenNotFound  = "token_not_found"
	codeLeaseNotFound  = "lease_not_found"
	codeSecretNotFound = "secret_not_found"
	codeSecretName     = "secret_name"
	codeNoResult       = "no_result"
	codeFileNotFound   = "file_not_found"
	codeFileName       = "file_name"
	codeFileExists     = "file_exists"
	codeFileChanged    = "file_changed"
	codeFileQuota      = "file_quota"
	codeFilesFull      = "files_full"
	codeChecksum       = "checksum_mismatch"
	codeUnknownPlugin  = "unknown_plugin"
	codePluginUnusable = "plugin_unusable"
	codePluginDisabled = "plugin_disabled"
	codeStateConflict  = "state_conflict"
	codeNotFinal       = "not_final"
	codeKeyReused      = "key_reused"
	codeRevision       = "revision_mismatch"
	codeExists         = "exists"
	codeInUse          = "in_use"
	codeInvalidConfig  = "invalid_config"
	codeRefused        = "refused"
	codeNeverFits      = "never_fits"
	codeNotLoaded      = "not_loaded"
	codeNotSupported   = "not_supported"
	codeStartFailed    = "start_failed"
	codePluginError    = "plugin_error"
	codeWorkerLost     = "worker_lost"
	codeLimit          = "limit_reached"
	codeQuota          = "quota_reached"
	codeTooManyStreams = "too_many_streams"
	codeDraining       = "draining"
	codeCoolingDown    = "cooling_down"
	codeShuttingDown   = "shutting_down"
	codeStoreFull      = "store_full"
	codeStoreDown      = "store_unavailable"
	codeUnknownName    = "unknown_name"
	codeClientGone     = "client_gone"
	codeBadRange       = "bad_range"
	codeLoginCode      = "login_code"
	codeInternal       = "internal"
)

// problemKind is what a code means, for everyone who meets it.
type problemKind struct {
	status int
	title  string
	next   string
}

var problemKinds = map[string]problemKind{
	codeInvalidJSON:      {400, "The body is no valid JSON.", "Check the body; the pointer and the byte say where."},
	codeDuplicateKey:     {400, "A key appears twice in one JSON object.", "Remove one of the two."},
	codeTooDeep:          {400, "The JSON is nested too deeply.", "Put deep data into a file and pass its path."},
	codeInvalidBody:      {422, "The body is not what the API describes.", "See errors for each place; /openapi.yaml has the description."},
	codeInvalidParameter: {400, "A parameter is not what the API describes.", "See errors; /openapi.yaml has the description."},
	codeUnexpectedBody:   {400, "This operation takes no body.", "Send the request without a body."},
	codeContentType:      {415, "The body has the wrong content type.", "Send the header Content-Type: application/json."},
	codeContentEncoding:  {415, "The body must not be compressed.", "Send it without Content-Encoding."},
	codeBodyUnreadable:   {400, "The body could not be read to its end.", "Send the request again."},
	codeBodyTooLarge:     {413, "The body is too large.", "Put large data into a file and pass its path."},
	codeBadMultipart:     {400, "The body is no multipart/form-data with a part called job.", "Send the job as JSON in the part job, and each file in a part of its own."},
	codeBadCursor:        {400, "The cursor is none that this list gave.", "Begin again without a cursor."},
	codeBadEventID:       {400, "Last-Event-ID or after is no number.", "Send the id of the last event that was seen, or none."},

	codeUnauthorized: {401, "This needs a valid token.", "Send the header Authorization: Bearer TOKEN; `cjm-ctl token create NAME` makes one, and the first is in admin.token in the state directory."},
	codeForbidden:    {403, "The role of the caller does not allow this.", "Use a token with a higher role."},
	codeNotYours:     {403, "The job belongs to somebody else.", "Use a token with the role admin."},
	codeBadHost:      {403, "The Host header names no address of this daemon.", "Use localhost, or add the name to server.allowed_hosts."},
	codeCrossOrigin:  {403, "The request comes from a web page of another origin.", "Add the origin to server.allowed_origins if it is yours."},

	codeNotFound:       {404, "There is nothing at this address.", "/openapi.yaml lists every address."},
	codeMethod:         {405, "The address does not take this method.", "The Allow header lists the methods it takes."},
	codeJobNotFound:    {404, "There is no such job.", "It may have been removed by retention; GET /v1/jobs lists what is kept."},
	codePluginNotFound: {404, "There is no such plugin.", "GET /v1/plugins lists what was found; POST /v1/plugins/discover looks again."},
	codeWorkerNotFound: {404, "There is no such worker.", "GET /v1/workers lists them."},
	codeTokenNotFound:  {404, "There is no such token.", "GET /v1/tokens lists them."},
	codeLeaseNotFound:  {404, "There is no such lease.", "GET /v1/leases lists them; those that are over are gone."},
	codeSecretNotFound: {404, "The plugin has no such secret.", "GET /v1/plugins/NAME/secrets lists them."},
	codeSecretName:     {422, "The name cannot be a secret's.", "Use the name of an environment variable: A-Z, 0-9 and _."},
	codeNoResult:       {404, "The job has no result.", "Look at the job's error or its stream."},
	codeFileNotFound:   {404, "The job has no such file.", "GET /v1/jobs/ID/files lists what it has."},
	codeFileName:       {422, "The name cannot be a file's.", "Use a relative path without .., links and control characters."},
	codeFileExists:     {412, "There is a file of this name.", "Choose another name, or leave If-None-Match out to replace it."},
	codeFileChanged:    {412, "The file is not what If-Match names.", "GET /v1/jobs/ID/files has its ETag as it is now."},
	codeFileQuota:      {413, "The job may not have so many files or bytes.", "Send less, put the file where the daemon can read it and pass its path, or raise jobs.files_mb."},
	codeFilesFull:      {507, "There is no more room for files of jobs.", "Remove files of old jobs (DELETE /v1/jobs/ID/files/NAME), wait for retention, or raise jobs.files_total_mb."},
	codeChecksum:       {422, "Other bytes arrived than the checksum names.", "Send the file again."},
	codeUnknownPlugin:  {422, "The plugin is not known.", "GET /v1/plugins lists what was found; POST /v1/plugins/discover looks again."},
	codePluginUnusable: {409, "The plugin's manifest cannot be used.", "Mend the manifest; it is read again at once."},
	codePluginDisabled: {409, "The plugin is disabled.", "Enable it with POST /v1/plugins/NAME/enable."},
	codeStateConflict:  {409, "The job's state does not allow this.", "Read the job again."},
	codeNotFinal:       {409, "The job is not final yet.", "Wait for it: GET /v1/jobs/ID?wait=60s."},
	codeKeyReused:      {409, "The key or id was used before with another body.", "Choose a new key, or send the same body."},
	codeRevision:       {412, "The job has changed since it was read.", "Read it again and repeat with its ETag, or leave If-Match out."},
	codeExists:         {409, "The name is taken.", "Choose another name."},
	codeInUse:          {409, "It is still in use.", "Cancel or finish its jobs first."},
	codeInvalidConfig:  {422, "The configuration does not fit the plugin's schema.", "See errors; GET /v1/plugins/NAME/config/schema has the schema."},
	codeRefused:        {409, "The scheduler's policy refuses to load this now.", "GET /v1/queue/plan tells what is missing; unload something or choose another policy."},
	codeNeverFits:      {422, "This machine never has what is asked for.", "GET /v1/system has what each accelerator has; ask for less."},
	codeNotLoaded:      {409, "The plugin is not loaded.", "Load it with POST /v1/plugins/NAME/load."},
	codeNotSupported:   {422, "The plugin does not offer this.", "Look at its capabilities in GET /v1/workers/NAME."},
	codeStartFailed:    {502, "The worker could not be started.", "The detail has its last words; GET /v1/plugins/NAME/logs has the rest."},
	codePluginError:    {502, "The plugin answered with an error.", "GET /v1/plugins/NAME/logs has its log."},
	codeWorkerLost:     {502, "The worker ended while it was asked.", "GET /v1/plugins/NAME/logs has its last words; try again."},
	codeLimit:          {429, "A limit is reached.", "Try again later."},
	codeQuota:          {429, "You have as many jobs waiting as one submitter may.", "Wait until some have started, or cancel some."},
	codeTooManyStreams: {429, "Too many event streams are open.", "Close some, or raise limits.sse_streams."},
	codeDraining:       {503, "The queue is draining and accepts no new jobs.", "Try again later, or POST /v1/queue/resume."},
	codeCoolingDown:    {503, "The worker failed and cools down before its next start.", "Try again later; GET /v1/workers/NAME tells why it failed."},
	codeShuttingDown:   {503, "The daemon is shutting down.", "Try again in a moment."},
	codeStoreFull:      {507, "The disk is full; nothing was accepted.", "Free space in the state directory; the daemon goes on by itself."},
	codeStoreDown:      {503, "The job store cannot be written; nothing was accepted.", "Look at the daemon's log."},
	codeUnknownName:    {422, "The name stands for nothing.", "The detail lists the names that do."},
	codeBadRange:       {416, "The range lies outside of the result.", "Ask for bytes below the size that Content-Range tells, or for the whole."},
	codeLoginCode:      {403, "The login link is used, too old or unknown.", "Make a new one: `cjm-ctl token login-link`."},
	codeClientGone:     {499, "The client went away.", ""},
	codeInternal:       {500, "Something went wrong inside the daemon.", "Look for the request id in the daemon's log."},
}

// explain finds the code of any error that a handler may return.
func explain(err error) *requestError {
	var re *requestError
	if errors.As(err, &re) {
		return re
	}
	if errors.Is(err, syscall.ENOSPC) { // whoever it was that could not write
		return &requestError{Code: codeStoreFull, RetryAfter: 30 * time.Second, Cause: err}
	}
	if re := explainJobs(err); re != nil {
		return re
	}
	if re := explainFiles(err); re != nil {
		return re
	}
	if re := explainPlugins(err); re != nil {
		return re
	}
	if re := explainSched(err); re != nil {
		return re
	}
	if re := explainWorkers(err); re != nil {
		return re
	}
	if re := explainRequest(err); re != nil {
		return re
	}
	if errors.Is(err, context.Canceled) {
		return &requestError{Code: codeClientGone, Cause: err}
	}
	return &requestError{Code: codeInternal, Cause: err}
}

func explainJobs(err error) *requestError {
	var (
		conflict *jobs.StateConflictError
		key      *jobs.IdempotencyError
		rev      *jobs.RevisionError
		limit    *jobs.LimitError
		invalid  *jobs.InvalidError
	)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		return &requestError{Code: codeJobNotFound, Cause: err}
	case errors.Is(err, jobs.ErrBadCursor):
		return &requestError{Code: codeBadCursor, Fields: []wire.FieldError{{Pointer: "?cursor", Message: "is not one that a list answer gave"}}, Cause: err}
	case errors.Is(err, jobs.ErrDraining):
		return &requestError{Code: codeDraining, RetryAfter: 30 * time.Second, Cause: err}
	case errors.Is(err, jobs.ErrStoreUnavailable):
		return &requestError{Code: codeStoreDown, RetryAfter: 10 * time.Second, Cause: err}
	case errors.As(err, &conflict):
		return &requestError{Code: codeStateConflict, Detail: fmt.Sprintf("Cannot %s the job: it is %s.", conflict.Action, conflict.Status), Cause: err}
	case errors.As(err, &key):
		return &requestError{Code: codeKeyReused, Detail: fmt.Sprintf("It belongs to job %s.", key.ID), Cause: err}
	case errors.As(err, &rev):
		return &requestError{Code: codeRevision, Detail: fmt.Sprintf("The job is at revision %d.", rev.Have), Cause: err}
	case errors.As(err, &invalid):
		return &requestError{Code: codeInvalidBody, Fields: []wire.FieldError{{Pointer: "/" + invalid.Field, Message: invalid.Message}}, Cause: err}
	case errors.As(err, &limit):
		retry := limit.RetryAfter
		if retry <= 0 {
			retry = time.Second
		}
		code := codeLimit
		if limit.Quota {
			code = codeQuota
		}
		return &requestError{Code: code, Detail: fmt.Sprintf("%s: the limit is %d.", limit.What, limit.Limit), RetryAfter: retry, Cause: err}
	}
	return nil
}

func explainPlugins(err error) *requestError {
	var (
		notFound *plugins.NotFoundError
		exists   *plugins.ExistsError
		name     *plugins.NameError
		implicit *plugins.ImplicitError
		config   *plugins.ConfigError
		manifest *plugins.ManifestError
		unknown  *UnknownError
		unusable *plugins.UnusableError
		secret   *plugins.MissingSecretError
	)
	switch {
	case errors.As(err, &notFound):
		detail := fmt.Sprintf("There is no %s of this name.", notFound.Kind)
		if notFound.Nearest != "" {
			detail += fmt.Sprintf(" Did you mean %q?", notFound.Nearest)
		}
		return &requestError{Code: codePluginNotFound, Detail: detail, Cause: err}
	case errors.As(err, &exists):
		return &requestError{Code: codeExists, Detail: "There is an instance of this id already.", Cause: err}
	case errors.As(err, &name):
		return &requestError{Code: codeInvalidBody, Cause: err,
			Fields: []wire.FieldError{{Pointer: "/id", Message: "must be 1 to 64 of A-Z a-z 0-9 . _ - and not begin with a dot"}}}
	case errors.As(err, &implicit):
		return &requestError{Code: codeInUse, Detail: "The instance is the plugin's own and cannot be deleted.", Next: "Disable it instead.", Cause: err}
	case errors.As(err, &config):
		return &requestError{Code: codeInvalidConfig, Fields: issueFields(config.Issues), Cause: err}
	case errors.As(err, &manifest):
		return &requestError{Code: codePluginUnusable, Detail: manifest.Error(), Cause: err}
	case errors.As(err, &unusable):
		return &requestError{Code: codePluginUnusable, Detail: "The plugin cannot run: " + unusable.Finding.Message + ".", Next: unusable.Finding.Mend, Cause: err}
	case errors.As(err, &secret):
		return &requestError{Code: codePluginUnusable, Detail: secret.Error(), Next: "Set the secret.", Cause: err}
	case errors.As(err, &unknown):
		return &requestError{Code: codeUnknownName, Cause: err,
			Detail: fmt.Sprintf("There is no %s of this name; known are: %s.", unknown.What, strings.Join(unknown.Known, ", "))}
	}
	return nil
}

// issueFields lists findings of a config check below /config, in the words that
// repeat no value: a configuration may hold keys and passwords.
func issueFields(issues []plugins.Issue) []wire.FieldError {
	out := make([]wire.FieldError, 0, len(issues))
	for _, i := range issues {
		if !i.Warning {
			out = append(out, wire.FieldError{Pointer: "/config" + i.Pointer, Message: cmp.Or(i.Rule, i.Message)})
		}
	}
	return out
}

func explainSched(err error) *requestError {
	var (
		disabled *sched.DisabledError
		refused  *sched.RefusedError
		policy   *sched.PolicyError
		never    *sched.NeverFitsError
		device   *sched.NoDeviceError
	)
	switch {
	case errors.As(err, &never):
		return &requestError{Code: codeNeverFits, Detail: never.Reason.Message, Cause: err}
	case errors.As(err, &device):
		known := append([]string{string(resource.HostDevice)}, deviceNames(device.Known)...)
		return &requestError{Code: codeUnknownName, Detail: fmt.Sprintf("There is no device of this name; known are: %s.", strings.Join(known, ", ")), Cause: err}
	case errors.Is(err, sched.ErrNoLease):
		return &requestError{Code: codeLeaseNotFound, Cause: err}
	case errors.As(err, &disabled):
		return &requestError{Code: codePluginDisabled, Cause: err}
	case errors.As(err, &refused):
		return &requestError{Code: codeRefused, Detail: refused.Reason.Message, Cause: err}
	case errors.As(err, &policy):
		return &requestError{Code: codeUnknownName, Detail: fmt.Sprintf("There is no policy of this name; known are: %s.", strings.Join(policy.Known, ", ")), Cause: err}
	case errors.Is(err, sched.ErrStopping):
		return &requestError{Code: codeShuttingDown, RetryAfter: 5 * time.Second, Cause: err}
	}
	return nil
}

func explainWorkers(err error) *requestError {
	var (
		start *supervisor.StartError
		lost  *supervisor.WorkerLostError
		conn  *supervisor.ConnLostError
		call  *supervisor.CallError
	)
	switch {
	case errors.As(err, &start):
		if start.Step == "backoff" {
			return &requestError{Code: codeCoolingDown, Detail: start.Error(), RetryAfter: max(time.Until(start.RetryAt), time.Second), Cause: err}
		}
		return &requestError{Code: codeStartFailed, Detail: start.Error(), Cause: err}
	case errors.As(err, &lost):
		return &requestError{Code: codeWorkerLost, Detail: lost.Error(), Cause: err}
	case errors.As(err, &conn):
		return &requestError{Code: codeWorkerLost, Cause: err}
	case errors.As(err, &call):
		return &requestError{Code: codePluginError, Detail: call.Message, Cause: err}
	case errors.Is(err, supervisor.ErrNoSlot):
		return &requestError{Code: codeLimit, Detail: "The worker is busy.", RetryAfter: time.Second, Cause: err}
	case errors.Is(err, supervisor.ErrNotLoaded):
		return &requestError{Code: codeNotLoaded, Cause: err}
	case errors.Is(err, supervisor.ErrNotSupported):
		return &requestError{Code: codeNotSupported, Cause: err}
	}
	return nil
}

// explainRequest knows the errors of our own decoder and of the generated code.
func explainRequest(err error) *requestError {
	var (
		syntax *strict.Error
		format *wire.InvalidParamFormatError
		many   *wire.TooManyValuesForParamError
		param  *wire.RequiredParamError
		typ    *json.UnmarshalTypeError
	)
	switch {
	case errors.As(err, &syntax):
		return &requestError{Code: string(syntax.Code), Fields: []wire.FieldError{{Pointer: syntax.Pointer, Message: syntax.Reason}}}
	case errors.As(err, &format):
		return badParam(format.ParamName, "is not of the type that the API describes")
	case errors.As(err, &many):
		return badParam(many.ParamName, "may be given only once")
	case errors.As(err, &param):
		return badParam(param.ParamName, "is missing")
	case errors.As(err, &typ):
		// Passed the schema but not the type, like 1.0 for an integer.
		at := "/" + strings.ReplaceAll(typ.Field, ".", "/")
		return &requestError{Code: codeInvalidBody, Fields: []wire.FieldError{{Pointer: at, Message: "is not of the type that the API describes"}}}
	}
	return nil
}

func badParam(name, message string) *requestError {
	return &requestError{Code: codeInvalidParameter, Fields: []wire.FieldError{{Pointer: "?" + name, Message: message}}}
}

// problemOf builds the answer for an error.
func problemOf(r *http.Request, re *requestError) wire.Problem {
	k, ok := problemKinds[re.Code]
	if !ok {
		k = problemKinds[codeInternal]
		re = &requestError{Code: codeInternal, Cause: re}
	}
	p := wire.Problem{Type: "urn:cjmd:problem:" + re.Code, Title: k.title, Status: k.status, Code: re.Code,
		Detail: re.Detail, Next: k.next, Instance: r.URL.Path, RequestId: requestID(r.Context()), Errors: re.Fields}
	if re.Next != "" {
		p.Next = re.Next
	}
	return p
}

// fail answers with the problem that err stands for and logs what the caller is
// not told.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	re := explain(err)
	p := problemOf(r, re)
	if p.Status >= 500 && p.Status != http.StatusServiceUnavailable {
		s.log.Error("request failed", zap.String("request", p.RequestId), zap.String("path", r.URL.Path), zap.String("code", p.Code), zap.Error(err))
	}
	writeProblem(w, p, re.RetryAfter)
}

func writeProblem(w http.ResponseWriter, p wire.Problem, retryAfter time.Duration) {
	body, err := json.Marshal(p)
	if err != nil { // plain strings and numbers: cannot happen
		body = []byte(`{"type":"about:blank","title":"Something went wrong inside the daemon.","status":500,"code":"internal"}`)
		p.Status = http.StatusInternalServerError
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Del("ETag")
	if retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(retryAfter.Seconds()))))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="cjmd"`)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}
