package api

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/api/wire"
)

func TestAccess_TCPNeedsAToken(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.Equal(t, 401, f.doTCP("", "GET", "/v1/jobs", nil).StatusCode)
	r := f.doTCP("cjm_wrong", "GET", "/v1/jobs", nil)
	require.Equal(t, 401, r.StatusCode)
	require.Contains(t, r.Header.Get("WWW-Authenticate"), "Bearer")
	require.Equal(t, 401, f.doTCP("", "GET", "/v1/jobs?token="+f.admin, nil).StatusCode, "a token in the address does not count")
	require.Equal(t, 200, f.doTCP(f.admin, "GET", "/v1/jobs", nil).StatusCode)
	require.Equal(t, 200, f.doTCP("", "GET", "/livez", nil).StatusCode)
	require.Equal(t, 200, f.doTCP("", "GET", "/openapi.yaml", nil).StatusCode)
	require.Equal(t, 401, f.doTCP("", "GET", "/metrics", nil).StatusCode)
}

func TestAccess_RolesBoundWhatATokenMayDo(t *testing.T) {
	t.Parallel()
	f := setup(t)
	token := func(name, role string) string {
		r := f.do("POST", "/v1/tokens", map[string]string{"name": name, "role": role})
		require.Equal(t, 201, r.StatusCode, "%s", r.body)
		var c wire.TokenCreated
		r.into(t, &c)
		return c.Secret
	}
	reader, alice, bob := token("reader", "read"), token("alice", "submit"), token("bob", "submit")
	body := `{"plugin":"textstats"}`
	require.Equal(t, 403, f.doTCP(reader, "POST", "/v1/jobs", body).StatusCode)
	r := f.doTCP(alice, "POST", "/v1/jobs", body)
	require.Equal(t, 202, r.StatusCode)
	var j wire.Job
	r.into(t, &j)
	require.Equal(t, "token:alice", j.Submitter)

	require.Equal(t, 200, f.doTCP(reader, "GET", "/v1/jobs/"+j.Id, nil).StatusCode)
	r = f.doTCP(bob, "POST", "/v1/jobs/"+j.Id+"/cancel", nil)
	require.Equal(t, 403, r.StatusCode)
	require.Equal(t, "not_your_job", r.code())
	require.Equal(t, 403, f.doTCP(bob, "GET", "/v1/jobs/"+j.Id+"/stream?on_disconnect=cancel", nil).StatusCode)
	require.Equal(t, 403, f.doTCP(reader, "GET", "/v1/jobs/"+j.Id+"/stream?on_disconnect=cancel", nil).StatusCode)
	require.Equal(t, 403, f.doTCP(alice, "POST", "/v1/queue/pause", nil).StatusCode)
	require.Equal(t, 403, f.doTCP(alice, "GET", "/v1/tokens", nil).StatusCode)
	require.Equal(t, 202, f.doTCP(alice, "POST", "/v1/jobs/"+j.Id+"/cancel", nil).StatusCode)

	require.Equal(t, 409, f.do("POST", "/v1/tokens", `{"name":"bob","role":"read"}`).StatusCode)
	require.Equal(t, 204, f.do("DELETE", "/v1/tokens/bob", nil).StatusCode)
	require.Equal(t, 401, f.doTCP(bob, "GET", "/v1/jobs", nil).StatusCode, "revoked at once")
	r = f.do("GET", "/v1/tokens", nil)
	require.NotContains(t, string(r.body), "sha256")
}

// As docs/decisions/0005 has it: roles bound what is done, not what is read.
func TestAccess_OneCircleOfReaders(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"textstats","args":["shared"]}`)
	f.finish(f.run(id), `"seen"`)
	for _, role := range []Role{RoleRead, RoleSubmit} {
		_, secret, err := f.tokens.Create("t-"+string(role), role, 0)
		require.NoError(t, err)
		require.Contains(t, string(f.doTCP(secret, "GET", "/v1/jobs/"+id, nil).body), "shared")
		require.Equal(t, `"seen"`, string(f.doTCP(secret, "GET", "/v1/jobs/"+id+"/result", nil).body))
		for _, path := range []string{"/logs", "/explain"} {
			require.Equal(t, 200, f.doTCP(secret, "GET", "/v1/jobs/"+id+path, nil).StatusCode)
		}
		for _, path := range []string{"/cancel", "/retry", "/hold", "/release"} {
			require.Equal(t, 403, f.doTCP(secret, "POST", "/v1/jobs/"+id+path, nil).StatusCode)
		}
	}
}

func TestAccess_SocketPeersAndTheirRole(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.Access = AccessOptions{SocketRole: RoleRead} })
	require.Equal(t, 200, f.do("GET", "/v1/jobs", nil).StatusCode)
	require.Equal(t, 403, f.do("POST", "/v1/jobs", `{"plugin":"textstats"}`).StatusCode)
}

func TestAccess_ForeignPagesStayOut(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.Access.AllowedOrigins = []string{"https://board.example"} })
	host := func(h string) edit { return func(r *http.Request) { r.Host = h } }
	r := f.doTCP(f.admin, "GET", "/v1/jobs", nil, host("evil.example"))
	require.Equal(t, 403, r.StatusCode, "a name that was bent to our address")
	require.Equal(t, "host_not_allowed", r.code())
	require.Equal(t, 403, f.doTCP(f.admin, "GET", "/livez", nil, host("evil.example:80")).StatusCode)
	require.Equal(t, 200, f.doTCP(f.admin, "GET", "/v1/jobs", nil, host("localhost:9")).StatusCode)
	require.Equal(t, 200, f.doTCP(f.admin, "GET", "/v1/jobs", nil, host("[::1]:9")).StatusCode)

	for _, method := range []string{"POST", "GET"} {
		var body any
		if method == "POST" {
			body = `{"plugin":"textstats"}`
		}
		r = f.doTCP(f.admin, method, "/v1/jobs", body, header("Origin", "https://evil.example"))
		require.Equal(t, 403, r.StatusCode)
		require.Equal(t, "cross_origin", r.code())
		require.Empty(t, r.Header.Get("Access-Control-Allow-Origin"))
		r = f.doTCP(f.admin, method, "/v1/jobs", body, header("Origin", "https://board.example"))
		require.Less(t, r.StatusCode, 300)
		r = f.doTCP(f.admin, method, "/v1/jobs", body, header("Origin", f.tcp.URL))
		require.Less(t, r.StatusCode, 300, "the daemon's own pages")
	}
	r = f.doTCP(f.admin, "POST", "/v1/jobs", `{"plugin":"textstats"}`, header("Sec-Fetch-Site", "cross-site"))
	require.Equal(t, "cross_origin", r.code())
}

func TestTokens_KeptAsHashesAndExpire(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Unix(1000, 0)
	tok, err := OpenTokens(dir, func() time.Time { return now })
	require.NoError(t, err)
	path, err := tok.EnsureAdminToken()
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	_, secret, err := tok.Create("ci", RoleSubmit, time.Minute)
	require.NoError(t, err)
	file, err := os.ReadFile(filepath.Join(dir, tokensFile))
	require.NoError(t, err)
	require.NotContains(t, string(file), secret)
	st, err = os.Stat(filepath.Join(dir, tokensFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	again, err := OpenTokens(dir, func() time.Time { return now })
	require.NoError(t, err)
	k, ok := again.Check(secret)
	require.True(t, ok)
	require.Equal(t, RoleSubmit, k.Role)
	require.Equal(t, now.UTC(), again.List()[1].LastUsedAt)
	now = now.Add(time.Minute)
	_, ok = again.Check(secret)
	require.False(t, ok, "expired")

	before, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = again.EnsureAdminToken()
	require.NoError(t, err)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, before, after, "a restart keeps the first token")
	require.ErrorIs(t, again.Delete("nobody"), ErrTokenNotFound)
	_, _, err = again.Create("x", "king", 0)
	require.Error(t, err)
}
