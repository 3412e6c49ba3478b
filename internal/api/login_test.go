package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// login makes a link with body and opens it as a browser would; it returns the
// answer of the link and the cookie.
func (f *fixture) login(body string) (wire.LoginCode, *http.Cookie) {
	f.t.Helper()
	r := f.doTCP(f.admin, "POST", "/v1/login-codes", body)
	require.Equal(f.t, 201, r.StatusCode, "%s", r.body)
	var code wire.LoginCode
	r.into(f.t, &code)
	open := f.visit(code.Path)
	require.Equal(f.t, 303, open.StatusCode, "%s", open.body)
	require.Equal(f.t, "/", open.Header.Get("Location"))
	require.Equal(f.t, "no-referrer", open.Header.Get("Referrer-Policy"))
	require.Len(f.t, open.Cookies(), 1)
	return code, open.Cookies()[0]
}

// visit fetches an address without following where it leads.
func (f *fixture) visit(path string) reply {
	f.t.Helper()
	c := *f.tcp.Client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return f.send(&c, f.tcp.URL, "GET", path, nil)
}

func cookie(c *http.Cookie) edit { return func(r *http.Request) { r.AddCookie(c) } }

func TestLogin_ACodeWorksOnceAndLeavesACookieNoScriptCanRead(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.BaseURL = func() string { return "http://127.0.0.1:8765" } })
	code, c := f.login(`{"role":"read"}`)
	require.Equal(t, "http://127.0.0.1:8765"+code.Path, code.Url)
	require.True(t, c.HttpOnly)
	require.Equal(t, http.SameSiteStrictMode, c.SameSite)
	require.NotContains(t, code.Path, c.Value)

	require.Equal(t, 200, f.doTCP("", "GET", "/v1/jobs", nil, cookie(c)).StatusCode)
	r := f.doTCP("", "POST", "/v1/jobs", `{"plugin":"textstats"}`, cookie(c))
	require.Equal(t, 403, r.StatusCode, "the role that was asked for bounds it")
	again := f.visit(code.Path)
	require.Equal(t, 403, again.StatusCode)
	require.Equal(t, "login_code", again.code())
	require.Empty(t, again.Cookies())
	require.Equal(t, 400, f.visit("/login").StatusCode)
	require.Equal(t, 403, f.visit("/login?code=guess").StatusCode)
}

func TestLogin_OtherPagesCannotUseTheCookie(t *testing.T) {
	t.Parallel()
	f := setup(t)
	_, c := f.login(`{}`)
	require.Equal(t, 200, f.doTCP("", "GET", "/v1/jobs", nil, cookie(c), header("Sec-Fetch-Site", "same-origin")).StatusCode)
	for _, site := range []string{"same-site", "cross-site"} { // another port of this machine; another machine
		r := f.doTCP("", "GET", "/v1/jobs", nil, cookie(c), header("Sec-Fetch-Site", site))
		require.Equal(t, 401, r.StatusCode, site)
		r = f.doTCP("", "POST", "/v1/queue/pause", nil, cookie(c), header("Sec-Fetch-Site", site))
		require.Equal(t, 403, r.StatusCode, site)
	}
	r := f.doTCP("cjm_wrong", "GET", "/v1/jobs", nil, cookie(c))
	require.Equal(t, 401, r.StatusCode, "a wrong token is not mended by a cookie")
}

func TestLogin_EndsWithTheTokenThatMadeIt(t *testing.T) {
	t.Parallel()
	f := setup(t)
	r := f.do("POST", "/v1/tokens", `{"name":"ann","role":"admin"}`)
	var made wire.TokenCreated
	r.into(t, &made)
	r = f.doTCP(made.Secret, "POST", "/v1/login-codes", nil)
	require.Equal(t, 201, r.StatusCode, "%s", r.body)
	var code, unused wire.LoginCode
	r.into(t, &code)
	f.doTCP(made.Secret, "POST", "/v1/login-codes", nil).into(t, &unused)
	c := f.visit(code.Path).Cookies()[0]
	require.Equal(t, 202, f.doTCP("", "POST", "/v1/jobs", `{"plugin":"textstats"}`, cookie(c)).StatusCode)
	require.Equal(t, 204, f.do("DELETE", "/v1/tokens/ann", nil).StatusCode)
	require.Equal(t, 401, f.doTCP("", "GET", "/v1/jobs", nil, cookie(c)).StatusCode)
	require.Equal(t, 403, f.visit(unused.Path).StatusCode)

	reader := f.do("POST", "/v1/tokens", `{"name":"bob","role":"submit"}`)
	reader.into(t, &made)
	require.Equal(t, 403, f.doTCP(made.Secret, "POST", "/v1/login-codes", nil).StatusCode)
}

func TestSessions_AreBoundedInTimeAndNumber(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	s := newSessions(func() time.Time { return now })
	who := Principal{Name: "uid:1", Role: RoleAdmin}
	code, _, err := s.issue(who, time.Time{})
	require.NoError(t, err)
	now = now.Add(loginLifetime)
	_, _, ok := s.redeem(code)
	require.False(t, ok, "too old")

	code, _, err = s.issue(who, now.Add(time.Hour))
	require.NoError(t, err)
	c, until, ok := s.redeem(code)
	require.True(t, ok)
	require.Equal(t, now.Add(time.Hour), until, "not longer than the token")
	got, ok := s.check(c)
	require.True(t, ok)
	require.Equal(t, who, got)
	now = now.Add(time.Hour)
	_, ok = s.check(c)
	require.False(t, ok)

	for range maxLogins {
		_, _, err = s.issue(who, time.Time{})
		require.NoError(t, err)
	}
	_, _, err = s.issue(who, time.Time{})
	require.ErrorIs(t, err, errTooManyLogins)
	now = now.Add(loginLifetime)
	for range maxLogins + 1 {
		code, _, err = s.issue(who, time.Time{})
		require.NoError(t, err)
		_, _, ok = s.redeem(code)
		require.True(t, ok)
	}
	require.Len(t, s.open, maxLogins)
	require.False(t, strings.Contains(code, "="))
}
