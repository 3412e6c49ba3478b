package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Role is what a principal may do: read sees everything but secrets, submit may
// also submit and act on its own jobs, admin may do everything.
type Role string

// The roles, weakest first.
const (
	RoleNone   Role = "none" // in the route table only: needs no credentials
	RoleRead   Role = "read"
	RoleSubmit Role = "submit"
	RoleAdmin  Role = "admin"
)

func (r Role) rank() int {
	return slices.Index([]Role{RoleNone, RoleRead, RoleSubmit, RoleAdmin}, r)
}

// Covers reports whether r may do what needs least.
func (r Role) Covers(least Role) bool { return r.rank() >= least.rank() && least.rank() >= 0 }

// Valid reports whether r can be given to a principal.
func (r Role) Valid() bool { return r.rank() > 0 }

// Principal is who sent a request.
type Principal struct {
	Name string // "uid:1000" over the Unix socket, "token:NAME" over TCP
	Role Role
}

type ctxKey int

const (
	keyPeer ctxKey = iota
	keyInfo
	keyRequest
	keyBody
)

// peer is what the kernel says about the other end of a Unix socket.
type peer struct{ uid, gid uint32 }

// ConnContext belongs into http.Server.ConnContext: it asks the kernel who is at
// the other end of a Unix socket. A connection it was not asked about counts as
// TCP and needs a token.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, keyPeer, peer{uid: cred.Uid, gid: cred.Gid})
}

// AccessOptions say whom the API believes.
type AccessOptions struct {
	// AdminUIDs may do everything over the Unix socket; root and the daemon's own
	// user belong here.
	AdminUIDs []uint32
	// SocketRole is the role of everybody else whom the socket's mode lets in;
	// "" means admin, because the mode is the guard.
	SocketRole Role
	// AllowedHosts are Host headers accepted on TCP, with or without a port.
	AllowedHosts []string
	// AllowedOrigins are origins of web pages accepted besides the daemon's own.
	AllowedOrigins []string
}

type access struct {
	opts     AccessOptions
	tokens   *Tokens
	sessions *sessions
	origins  map[string]bool
	hosts    map[string]bool
	cross    *http.CrossOriginProtection
}

func newAccess(o AccessOptions, tokens *Tokens) (*access, error) {
	if o.SocketRole == "" {
		o.SocketRole = RoleAdmin
	}
	if !o.SocketRole.Valid() {
		return nil, fmt.Errorf("cannot use socket role %q: admin, submit and read are known", o.SocketRole)
	}
	a := &access{opts: o, tokens: tokens, origins: map[string]bool{}, hosts: map[string]bool{}, cross: http.NewCrossOriginProtection()}
	for _, h := range append([]string{"localhost", "127.0.0.1", "[::1]"}, o.AllowedHosts...) {
		a.hosts[strings.ToLower(h)] = true
	}
	for _, origin := range o.AllowedOrigins {
		if err := a.cross.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("cannot use the allowed origin %q: %w", origin, err)
		}
		a.origins[strings.ToLower(origin)] = true
	}
	return a, nil
}

// identify finds the principal of a request, or why there is none. A request
// without credentials is an error only where the route needs them.
func (a *access) identify(r *http.Request) (Principal, error) {
	if p, ok := r.Context().Value(keyPeer).(peer); ok {
		who := Principal{Name: fmt.Sprintf("uid:%d", p.uid), Role: a.opts.SocketRole}
		if slices.Contains(a.opts.AdminUIDs, p.uid) {
			who.Role = RoleAdmin
		}
		return who, nil
	}
	if r.Header.Get("Authorization") == "" {
		if who, ok := a.browser(r); ok {
			return who, nil
		}
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") || secret == "" {
		return Principal{}, &requestError{Code: codeUnauthorized, Detail: "The request carries no token."}
	}
	tok, ok := a.tokens.Check(secret)
	if !ok {
		return Principal{}, &requestError{Code: codeUnauthorized, Detail: "The token is unknown, revoked or expired."}
	}
	return Principal{Name: "token:" + tok.Name, Role: tok.Role}, nil
}

// browser finds who a login cookie stands for. Browsers send cookies also for
// what another page asks them to fetch: those on other sites are stopped by
// SameSite=Strict, those on another port of this machine here, because reading
// can have effects, too (?on_disconnect=cancel).
func (a *access) browser(r *http.Request) (Principal, bool) {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return Principal{}, false
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		if !a.origins[strings.ToLower(r.Header.Get("Origin"))] {
			return Principal{}, false
		}
	}
	return a.sessions.check(c.Value)
}

// guard refuses requests that a web page of another origin may have made, also
// one that has bent its name to our address (DNS rebinding).
func (a *access) guard(r *http.Request) error {
	_, isUnix := r.Context().Value(keyPeer).(peer)
	if !isUnix && !a.hostAllowed(r.Host) {
		return &requestError{Code: codeBadHost}
	}
	if err := a.cross.Check(r); err != nil {
		return &requestError{Code: codeCrossOrigin, Cause: err}
	}
	if origin := r.Header.Get("Origin"); origin != "" && !a.origins[strings.ToLower(origin)] && !sameOrigin(origin, r.Host) {
		return &requestError{Code: codeCrossOrigin}
	}
	return nil
}

func (a *access) hostAllowed(host string) bool {
	host = strings.ToLower(host)
	if a.hosts[host] {
		return true
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		return false
	}
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	return a.hosts[name]
}

func sameOrigin(origin, host string) bool {
	u, err := url.Parse(origin)
	return err == nil && host != "" && strings.EqualFold(u.Host, host)
}
