package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"
)

const (
	tokensFile    = "tokens.json"
	adminFile     = "admin.token"
	adminName     = "admin"
	secretPrefix  = "cjm_"
	secretEntropy = 32
)

// Token is a named secret with a role. Only the hash of the secret is kept.
type Token struct {
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	Hash      string    `json:"sha256"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
	// LastUsedAt is kept in memory alone, by the minute.
	LastUsedAt time.Time `json:"-"`
}

// Errors of Tokens.
var (
	ErrTokenExists   = errors.New("there is a token of this name already")
	ErrTokenNotFound = errors.New("there is no such token")
)

// Tokens are the secrets that TCP callers show: a file of hashes, mode 0600,
// replaced as a whole with every change. It does not live in the job store, so
// that access can still be granted and revoked while the store is read-only.
// Safe from any goroutine.
type Tokens struct {
	dir string
	now func() time.Time

	// change serialises changes. It is held while the file is written; Check and
	// List never take it.
	change sync.Mutex
	list   atomic.Pointer[[]Token] // replaced, never changed
	used   sync.Map                // name → time.Time of the last use, by the minute
}

// OpenTokens reads the tokens of a state directory. now is the clock; nil means
// time.Now.
func OpenTokens(dir string, now func() time.Time) (*Tokens, error) {
	if now == nil {
		now = time.Now
	}
	t := &Tokens{dir: dir, now: now}
	t.list.Store(&[]Token{})
	data, err := os.ReadFile(filepath.Join(dir, tokensFile))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the tokens: %w", err)
	}
	var list []Token
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("cannot read the tokens in %s: %w", tokensFile, err)
	}
	t.list.Store(&list)
	return t, nil
}

// EnsureAdminToken makes the first token when there is no admin token at all,
// and writes its secret to admin.token (mode 0600) in the state directory, where
// cjm-ctl finds it. It returns the file's path.
func (t *Tokens) EnsureAdminToken() (string, error) {
	path := filepath.Join(t.dir, adminFile)
	if slices.ContainsFunc(*t.list.Load(), func(k Token) bool { return k.Role == RoleAdmin && !t.expired(k) }) {
		return path, nil
	}
	_, _, err := t.create(adminName, RoleAdmin, 0, func(secret string) error {
		return renameio.WriteFile(path, []byte(secret+"\n"), 0o600)
	})
	if errors.Is(err, ErrTokenExists) { // it expired or lost its role: a new secret under the same name
		if err := t.Delete(adminName); err != nil {
			return "", err
		}
		return t.EnsureAdminToken()
	}
	if err != nil {
		return "", fmt.Errorf("cannot make the first token: %w", err)
	}
	return path, nil
}

// Create makes a token and returns its secret, which is kept nowhere. lifetime 0
// means that it never expires.
func (t *Tokens) Create(name string, role Role, lifetime time.Duration) (Token, string, error) {
	return t.create(name, role, lifetime, nil)
}

// create adds a token; before it counts, keep (when not nil) puts the secret away.
func (t *Tokens) create(name string, role Role, lifetime time.Duration, keep func(secret string) error) (Token, string, error) {
	if !role.Valid() {
		return Token{}, "", fmt.Errorf("cannot make a token with role %q", role)
	}
	secret := secretPrefix + newSecret()
	tok := Token{Name: name, Role: role, Hash: hashSecret(secret), CreatedAt: t.now().UTC().Truncate(time.Second)}
	if lifetime > 0 {
		tok.ExpiresAt = t.now().Add(lifetime).UTC().Truncate(time.Second)
	}
	t.change.Lock()
	defer t.change.Unlock()
	if slices.ContainsFunc(*t.list.Load(), func(k Token) bool { return k.Name == name }) {
		return Token{}, "", ErrTokenExists
	}
	if keep != nil {
		if err := keep(secret); err != nil {
			return Token{}, "", err
		}
	}
	if err := t.saveLocked(append(slices.Clone(*t.list.Load()), tok)); err != nil {
		return Token{}, "", err
	}
	return tok, secret, nil
}

// Delete revokes a token at once.
func (t *Tokens) Delete(name string) error {
	t.change.Lock()
	defer t.change.Unlock()
	have := *t.list.Load()
	list := slices.DeleteFunc(slices.Clone(have), func(k Token) bool { return k.Name == name })
	if len(list) == len(have) {
		return ErrTokenNotFound
	}
	if err := t.saveLocked(list); err != nil {
		return err
	}
	t.used.Delete(name) // a later token of the same name has not been used
	return nil
}

// List returns the tokens by name, without hashes.
func (t *Tokens) List() []Token {
	out := slices.Clone(*t.list.Load())
	for i := range out {
		out[i].Hash = ""
		if at, ok := t.used.Load(out[i].Name); ok {
			out[i].LastUsedAt, _ = at.(time.Time)
		}
	}
	slices.SortFunc(out, func(a, b Token) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Check finds the token of a secret. Hashes are compared in constant time and
// none is skipped, so that the time taken tells nothing.
func (t *Tokens) Check(secret string) (Token, bool) {
	hash := []byte(hashSecret(secret))
	list := *t.list.Load()
	found := -1
	for i := range list {
		if subtle.ConstantTimeCompare(hash, []byte(list[i].Hash)) == 1 {
			found = i
		}
	}
	if found < 0 || t.expired(list[found]) {
		return Token{}, false
	}
	t.touch(list[found].Name)
	return list[found], true
}

func (t *Tokens) touch(name string) {
	now := t.now()
	if at, ok := t.used.Load(name); ok {
		if last, _ := at.(time.Time); now.Sub(last) < time.Minute {
			return
		}
	}
	t.used.Store(name, now.UTC().Truncate(time.Second))
}

func (t *Tokens) expired(k Token) bool { return !k.ExpiresAt.IsZero() && !t.now().Before(k.ExpiresAt) }

// saveLocked makes list durable and then current. The caller holds change.
func (t *Tokens) saveLocked(list []Token) error {
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the tokens: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(t.dir, tokensFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write the tokens: %w", err)
	}
	t.list.Store(&list)
	return nil
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
