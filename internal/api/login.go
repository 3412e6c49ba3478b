package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// A browser cannot be given a token safely: in an address it would end up in
// histories and logs. It comes with a code that works once and for two minutes,
// and leaves with a cookie that no script can read.

// CreateLoginCode is POST /v1/login-codes.
func (s *server) CreateLoginCode(ctx context.Context, req wire.CreateLoginCodeRequestObject) (wire.CreateLoginCodeResponseObject, error) {
	who := principalOf(ctx)
	if req.Body != nil && req.Body.Role != "" {
		who.Role = Role(req.Body.Role) // the caller is admin, so it is never more than it has
	}
	var limit time.Time
	if name, ok := strings.CutPrefix(who.Name, "token:"); ok {
		for _, t := range s.o.Tokens.List() {
			if t.Name == name {
				limit = t.ExpiresAt
			}
		}
	}
	code, expires, err := s.sessions.issue(who, limit)
	if err != nil {
		return nil, &requestError{Code: codeLimit, Detail: "Too many login codes wait to be used.", RetryAfter: loginLifetime, Cause: err}
	}
	path := "/login?code=" + code
	out := wire.LoginCode{Code: code, Path: path, Role: wire.Role(who.Role), ExpiresAt: expires}
	if base := s.o.BaseURL(); base != "" {
		out.Url = base + path
	}
	return wire.CreateLoginCode201JSONResponse(out), nil
}

// Login is GET /login.
func (s *server) Login(ctx context.Context, req wire.LoginRequestObject) (wire.LoginResponseObject, error) {
	cookie, until, ok := s.sessions.redeem(req.Params.Code)
	if !ok {
		return nil, &requestError{Code: codeLoginCode}
	}
	c := http.Cookie{Name: sessionCookie, Value: cookie, Path: "/", Expires: until, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: requestOf(ctx).TLS != nil}
	return wire.Login303Response{Headers: wire.Login303ResponseHeaders{Location: "/", SetCookie: c.String(), ReferrerPolicy: "no-referrer"}}, nil
}
