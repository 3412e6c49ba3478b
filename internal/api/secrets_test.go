package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/plugins"
)

func TestSecrets_AreWrittenAndNeverRead(t *testing.T) {
	t.Parallel()
	f := setup(t)
	man := f.plugins.manifests["speech"]
	man.Secrets, man.OptionalSecrets = []string{"API_KEY"}, []string{"PROXY"}
	f.plugins.manifests["speech"] = man

	list := func() wire.SecretList {
		r := f.do("GET", "/v1/plugins/speech/secrets", nil)
		require.Equal(t, 200, r.StatusCode, r.body)
		require.NotContains(t, string(r.body), "hush")
		var out wire.SecretList
		require.NoError(t, json.Unmarshal(r.body, &out))
		return out
	}
	require.Equal(t, []wire.SecretState{{Name: "API_KEY", Required: true}, {Name: "PROXY"}}, list().Secrets)

	r := f.do("PUT", "/v1/plugins/speech/secrets/API_KEY", `{"value":"hush-hush"}`)
	require.Equal(t, 204, r.StatusCode, r.body)
	require.Empty(t, r.body)
	require.Equal(t, 204, f.do("PUT", "/v1/plugins/speech/secrets/EXTRA", `{"value":"hush"}`).StatusCode)
	require.Equal(t, []wire.SecretState{{Name: "API_KEY", Required: true, Set: true}, {Name: "EXTRA", Set: true}, {Name: "PROXY"}}, list().Secrets)
	require.NotContains(t, string(f.do("GET", "/v1/plugins/speech", nil).body), "hush")

	require.Equal(t, 204, f.do("DELETE", "/v1/plugins/speech/secrets/EXTRA", nil).StatusCode)
	require.Equal(t, "secret_not_found", f.do("DELETE", "/v1/plugins/speech/secrets/EXTRA", nil).code())
	require.Len(t, list().Secrets, 2)
}

func TestSecrets_Refused(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for _, c := range []struct {
		path, body string
		status     int
		code       string
	}{
		{"/v1/plugins/nobody/secrets/KEY", `{"value":"hush"}`, 404, "plugin_not_found"},
		{"/v1/plugins/speech/secrets/not-a-name", `{"value":"hush"}`, 422, "secret_name"},
		{"/v1/plugins/speech/secrets/LISTEN_FDS", `{"value":"hush"}`, 422, "secret_name"},
		{"/v1/plugins/speech/secrets/KEY", `{"value":""}`, 422, "invalid_body"},
		{"/v1/plugins/speech/secrets/KEY", `{"value":"hu\u0000sh"}`, 422, "invalid_body"},
		{"/v1/plugins/speech/secrets/KEY", `{"valeu":"hush"}`, 422, "invalid_body"},
		{"/v1/plugins/speech/secrets/KEY", `{"value":"` + strings.Repeat("x", 1<<17) + `"}`, 422, "invalid_body"},
	} {
		r := f.do("PUT", c.path, c.body)
		require.Equal(t, c.status, r.StatusCode, "%s %.40s: %s", c.path, c.body, r.body)
		require.Equal(t, c.code, r.code())
		require.NotContains(t, string(r.body), "hush", "what was submitted is not repeated")
	}
	require.Equal(t, 404, f.do("GET", "/v1/plugins/nobody/secrets", nil).StatusCode)
}

func TestPlugins_FindingsAreListed(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.NotContains(t, string(f.do("GET", "/v1/plugins/speech", nil).body), "findings")
	man := f.plugins.manifests["speech"]
	man.PythonPath = "/nowhere/bin/python"
	f.plugins.manifests["speech"] = man
	var p wire.Plugin
	require.NoError(t, json.Unmarshal(f.do("GET", "/v1/plugins/speech", nil).body, &p))
	require.Len(t, p.Findings, 1)
	require.Equal(t, plugins.FindingNoProgram, p.Findings[0].Code)
	require.True(t, p.Findings[0].Blocks)
	require.Contains(t, p.Findings[0].Message, "/nowhere/bin/python is not there")
	require.NotEmpty(t, p.Findings[0].Next)
}
