package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	apispec "github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/api/wire"
)

// secret stands in places where a value is wrong; no answer may repeat it.
const secret = "hunter2-secret-value"

func TestBadInput_EachIsAProblemThatRepeatsNoValue(t *testing.T) {
	t.Parallel()
	f := setup(t)
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	cases := []struct {
		name, body string
		status     int
		code       string
		pointer    string
	}{
		{"unknown plugin", `{"plugin":"textstat"}`, 422, "unknown_plugin", "/plugin"},
		{"disabled plugin", `{"plugin":"resting"}`, 409, "plugin_disabled", "/plugin"},
		{"args no array", `{"plugin":"textstats","args":{"a":"` + secret + `"}}`, 422, "invalid_body", "/args"},
		{"args a string", `{"plugin":"textstats","args":"` + secret + `"}`, 422, "invalid_body", "/args"},
		{"kwargs no object", `{"plugin":"textstats","kwargs":["` + secret + `"]}`, 422, "invalid_body", "/kwargs"},
		{"kwargs null", `{"plugin":"textstats","kwargs":null}`, 422, "invalid_body", "/kwargs"},
		{"2 MiB", `{"plugin":"textstats","args":["` + strings.Repeat("x", 2<<20) + `"]}`, 413, "body_too_large", ""},
		{"100 levels", `{"plugin":"textstats","args":` + deep + `}`, 400, "too_deep", "/args/0/0/0"},
		{"duplicate key", `{"plugin":"textstats","plugin":"` + secret + `"}`, 400, "duplicate_key", "/plugin"},
		{"duplicate key in kwargs", `{"plugin":"textstats","kwargs":{"a":{"b":1,"b":2}}}`, 400, "duplicate_key", "/kwargs/a/b"},
		{"duplicate key, escaped", `{"plugin":"textstats","kwargs":{"a":1,"\u0061":2}}`, 400, "duplicate_key", "/kwargs/a"},
		{"unknown field", `{"plugin":"textstats","priorty":1}`, 422, "invalid_body", "/priorty"},
		{"missing field", `{}`, 422, "invalid_body", "/plugin"},
		{"wrong type", `{"plugin":"textstats","priority":"` + secret + `"}`, 422, "invalid_body", "/priority"},
		{"too large a number", `{"plugin":"textstats","priority":99999999}`, 422, "invalid_body", "/priority"},
		{"an exponent to fill memory", `{"plugin":"textstats","priority":1e999999999}`, 400, "invalid_json", "/priority"},
		{"an integer with a fraction", `{"plugin":"textstats","priority":1.0}`, 422, "invalid_body", "/priority"},
		{"no duration", `{"plugin":"textstats","run_timeout":"` + secret + `"}`, 422, "invalid_body", "/run_timeout"},
		{"too long a duration", `{"plugin":"textstats","run_timeout":"99999999999999h"}`, 422, "invalid_body", "/run_timeout"},
		{"not in the enum", `{"plugin":"textstats","on_dependency_failure":"` + secret + `"}`, 422, "invalid_body", "/on_dependency_failure"},
		{"trailing data", `{"plugin":"textstats"} {"a":"` + secret + `"}`, 400, "invalid_json", ""},
		{"trailing comma", `{"plugin":"textstats",}`, 400, "invalid_json", ""},
		{"cut off", `{"plugin":"textst`, 400, "invalid_json", "/plugin"},
		{"NaN", `{"plugin":"textstats","args":[NaN]}`, 400, "invalid_json", "/args/0"},
		{"invalid UTF-8", "{\"plugin\":\"\xff\xfe\"}", 400, "invalid_json", ""},
		{"no object", `["` + secret + `"]`, 422, "invalid_body", ""},
		{"empty", ``, 400, "invalid_json", ""},
		{"unknown dependency", `{"plugin":"textstats","depends_on":["nobody"]}`, 422, "invalid_body", "/depends_on/0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := f.do("POST", "/v1/jobs", c.body)
			require.Equal(t, c.status, r.StatusCode, "%s", r.body)
			var p wire.Problem
			r.into(t, &p)
			require.Equal(t, c.code, p.Code)
			require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
			require.NotEmpty(t, p.Next)
			require.Equal(t, r.Header.Get("X-Request-Id"), p.RequestId)
			if c.pointer != "" {
				require.NotEmpty(t, p.Errors, "%s", r.body)
				require.Equal(t, c.pointer, p.Errors[0].Pointer, "%s", r.body)
			}
			require.NotContains(t, string(r.body), secret)
		})
	}
	r := f.do("POST", "/v1/jobs", `{"plugin":"textstats","priorty":1}`)
	require.Contains(t, string(r.body), `"suggestion":"priority"`)
	require.Empty(t, f.queue.Groups(1), "nothing of all that became a job")
}

func TestBadInput_Elsewhere(t *testing.T) {
	t.Parallel()
	f := setup(t)
	cases := []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"PUT", "/v1/plugins/textstats/config", `{"config":{"mode":"wrong"}}`, 422, "invalid_config"},
		{"PUT", "/v1/plugins/textstats/config", `{"config":[]}`, 422, "invalid_body"},
		{"PUT", "/v1/monitor", `{"name":"psychic"}`, 422, "unknown_name"},
		{"PUT", "/v1/scheduler", `{"policy":"luck"}`, 422, "unknown_name"},
		{"POST", "/v1/tokens", `{"name":"a","role":"king"}`, 422, "invalid_body"},
		{"POST", "/v1/tokens", `{"name":"a","role":"read","expires_in":"1ms"}`, 422, "invalid_body"},
		{"PATCH", "/v1/jobs/x", `{}`, 422, "invalid_body"},
		{"POST", "/v1/jobs/x/hold", `{}`, 400, "unexpected_body"},
		{"POST", "/v1/jobs:batch", `{"jobs":[]}`, 422, "invalid_body"},
		{"PUT", "/v1/jobs/.hidden", `{"plugin":"textstats"}`, 422, "invalid_body"},
		{"POST", "/v1/plugins/textstats/instances", `{"id":"speech"}`, 409, "exists"},
		{"GET", "/v1/plugins/nobody", "", 404, "plugin_not_found"},
		{"GET", "/v1/workers/nobody", "", 404, "worker_not_found"},
		{"GET", "/v1/nothing", "", 404, "not_found"},
		{"DELETE", "/v1/tokens/nobody", "", 404, "token_not_found"},
		{"GET", "/v1/plugins/speech/stats", "", 409, "not_loaded"},
		{"GET", "/v1/events?after=x", "", 400, "bad_event_id"},
		{"GET", "/v1/jobs?limit=%zz", "", 400, "invalid_parameter"},
		{"GET", "/v1/jobs?limt=1", "", 400, "invalid_parameter"},
		{"POST", "/v1/jobs/x/cancel?wait=1s", "", 400, "invalid_parameter"},
		{"GET", "/v1/jobs/x?wait=1s&wait=2s", "", 400, "invalid_parameter"},
	}
	for _, c := range cases {
		var body any
		if c.body != "" {
			body = c.body
		}
		r := f.do(c.method, c.path, body)
		require.Equal(t, c.status, r.StatusCode, "%s %s: %s", c.method, c.path, r.body)
		require.Equal(t, c.code, r.code(), "%s %s", c.method, c.path)
	}
	r := f.do("GET", "/v1/jobs?limt=1", nil)
	require.Contains(t, string(r.body), `"suggestion":"limit"`)
	require.Equal(t, 200, f.do("GET", "/livez?verbose=1", nil).StatusCode)
	r = f.do("DELETE", "/v1/jobs", nil)
	require.Equal(t, 405, r.StatusCode)
	require.ElementsMatch(t, []string{"GET", "POST"}, r.Header.Values("Allow"))
	r = f.do("POST", "/v1/jobs", `{"plugin":"textstats"}`, header("Content-Type", "text/plain"))
	require.Equal(t, 415, r.StatusCode)
	r = f.do("POST", "/v1/jobs", `{"plugin":"textstats"}`, header("Content-Encoding", "gzip"))
	require.Equal(t, 415, r.StatusCode)
	r = f.do("GET", "/v1/jobs/x/events", nil, header("Last-Event-ID", "twelve"))
	require.Equal(t, "bad_event_id", r.code())
}

func TestRoutes_EqualTheDescriptionBothWays(t *testing.T) {
	t.Parallel()
	sp, err := loadSpec(apispec.Spec)
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, row := range routes(&wire.ServerInterfaceWrapper{}) {
		require.False(t, seen[row.op], "%s is served twice", row.op)
		seen[row.op] = true
		require.Equal(t, sp.ops[row.op], row.method+" "+strings.Replace(row.pattern, restOfPath, "{name}", 1), "operation %s", row.op)
		require.Equal(t, sp.roles[row.op], string(row.role), "x-role of %s", row.op)
	}
	for op := range sp.ops {
		require.True(t, seen[op], "%s is described but not served", op)
	}
	require.Len(t, seen, len(sp.ops))
}

// The description names every code, at its operation or in the introduction,
// with nothing that does not exist.
func TestProblems_AreDescribed(t *testing.T) {
	t.Parallel()
	sp, err := loadSpec(apispec.Spec)
	require.NoError(t, err)
	text, _ := dig(sp.doc, "info", "description").(string)
	told := map[string]bool{codeNotFound: true, codeClientGone: true} // no operation's own; nobody's to read
	for op := range sp.ops {
		for _, code := range sp.codes[op] {
			require.Contains(t, problemKinds, code, "x-problems of %s", op)
			told[code] = true
		}
	}
	for code := range problemKinds {
		require.True(t, told[code] || strings.Contains(text, "`"+code+"`"), "%s is told nowhere", code)
	}
}

func TestBadInput_IdempotencyKeyIsBounded(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for _, path := range []string{"/v1/jobs", "/v1/plugins/textstats/execute", "/v1/plugins/textstats/execute_stream"} {
		for _, key := range []string{"", strings.Repeat("k", 256)} {
			body := `{}`
			if path == "/v1/jobs" {
				body = `{"plugin":"textstats"}`
			}
			r := f.do("POST", path, body, header("Idempotency-Key", key))
			require.Equal(t, 400, r.StatusCode)
			require.Equal(t, "invalid_parameter", r.code())
		}
	}
}

// Every example in the description is a body that the API takes.
func TestExamples_OfTheDescriptionAreAccepted(t *testing.T) {
	t.Parallel()
	sp, err := loadSpec(apispec.Spec)
	require.NoError(t, err)
	b := newBodies(sp, DefaultLimits, time.Second)
	for op, at := range sp.ops {
		method, path, _ := strings.Cut(at, " ")
		body := asMap(dig(sp.doc, "paths", path, strings.ToLower(method), "requestBody"))
		if body == nil || dig(body, "content", "application/json") == nil {
			continue
		}
		examples := asMap(dig(body, "content", "application/json", "examples"))
		require.NotEmpty(t, examples, "%s has no example", op)
		for name, ex := range examples {
			data, err := json.Marshal(asMap(ex)["value"])
			require.NoError(t, err)
			require.NoError(t, b.verify(sp.rules[op], data), "%s, example %s", op, name)
		}
	}
}

func TestProblems_EachCodeHasAStatusAndATitle(t *testing.T) {
	t.Parallel()
	for code, k := range problemKinds {
		require.True(t, k.status >= 400 && k.status < 600, code)
		require.NotEmpty(t, k.title, code)
		require.True(t, strings.HasSuffix(k.title, "."), code)
	}
	require.Equal(t, codeInternal, explain(fmt.Errorf("strange")).Code)
	require.Equal(t, http.StatusInternalServerError, problemKinds[codeInternal].status)
}
