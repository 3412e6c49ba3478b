package api

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"sync"
	"time"
)

const (
	sessionCookie = "cjm_session"
	loginLifetime = 2 * time.Minute // of a login code: from the terminal to the browser
	sessionTime   = 24 * time.Hour
	// maxLogins bounds codes and sessions, each; beyond it the oldest end.
	maxLogins = 256
)

var errTooManyLogins = errors.New("too many login codes wait to be used")

// session is a browser that came by a login link.
type session struct {
	who     Principal
	until   time.Time // of the session; a code's own end is in codes
	expires time.Time // of the code
}

// sessions are login codes that wait to be used, and the browsers that used
// one. Both live in memory alone and end with the daemon. Only hashes are kept,
// so neither a dump nor a timing tells a secret. Safe from any goroutine.
type sessions struct {
	now func() time.Time

	mu    sync.Mutex
	codes map[string]session // by hash of the code
	open  map[string]session // by hash of the cookie
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, codes: map[string]session{}, open: map[string]session{}}
}

// issue makes a code that logs one browser in as who, until at most limit (zero:
// no limit of its own).
func (s *sessions) issue(who Principal, limit time.Time) (code string, expires time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pruneLocked()
	if len(s.codes) >= maxLogins {
		return "", time.Time{}, errTooManyLogins
	}
	code, expires = newSecret(), s.now().Add(loginLifetime).UTC().Truncate(time.Second)
	s.codes[hashSecret(code)] = session{who: who, until: limit, expires: expires}
	return code, expires, nil
}

// redeem changes a code into a cookie, once.
func (s *sessions) redeem(code string) (cookie string, until time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hash := hashSecret(code)
	got, ok := s.codes[hash]
	delete(s.codes, hash)
	now := s.now()
	if !ok || !now.Before(got.expires) {
		return "", time.Time{}, false
	}
	if end := now.Add(sessionTime); got.until.IsZero() || got.until.After(end) {
		got.until = end
	}
	s.pruneLocked()
	if len(s.open) >= maxLogins {
		s.endOldestLocked()
	}
	cookie = newSecret()
	s.open[hashSecret(cookie)] = got
	return cookie, got.until, true
}

// check finds who a cookie stands for.
func (s *sessions) check(cookie string) (Principal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got, ok := s.open[hashSecret(cookie)]
	if !ok || !s.now().Before(got.until) {
		return Principal{}, false
	}
	return got.who, true
}

// end forgets every code and session of a principal: its token was revoked.
func (s *sessions) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[string]session{s.codes, s.open} {
		for hash, x := range m {
			if x.who.Name == name {
				delete(m, hash)
			}
		}
	}
}

func (s *sessions) pruneLocked() {
	now := s.now()
	for hash, x := range s.codes {
		if !now.Before(x.expires) {
			delete(s.codes, hash)
		}
	}
	for hash, x := range s.open {
		if !now.Before(x.until) {
			delete(s.open, hash)
		}
	}
}

func (s *sessions) endOldestLocked() {
	oldest := ""
	for hash, x := range s.open {
		if oldest == "" || x.until.Before(s.open[oldest].until) {
			oldest = hash
		}
	}
	delete(s.open, oldest)
}

func newSecret() string {
	raw := make([]byte, secretEntropy)
	_, _ = rand.Read(raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}
