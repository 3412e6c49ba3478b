package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
)

// Secrets keeps the secrets of plugins: one file per plugin, 0600, in a 0700
// directory. Values go in and only come out for a worker's start; nothing of
// the API, the journal or a log ever reads them. Safe from any goroutine.
type Secrets struct {
	dir string
	mu  sync.Mutex // one writer of files; held across file operations on purpose: they are rare and small
}

// MissingSecretError says which secrets a plugin needs and how to give them.
type MissingSecretError struct {
	Plugin string
	Names  []string
}

func (e *MissingSecretError) Error() string {
	return fmt.Sprintf("cannot start plugin %q: it needs the secret %s; run: cjm-ctl set-secret %s %s",
		e.Plugin, strings.Join(e.Names, ", "), e.Plugin, e.Names[0])
}

// SecretNameError says that a secret cannot have this name.
type SecretNameError struct {
	Name   string
	Reason string
}

func (e *SecretNameError) Error() string {
	return fmt.Sprintf("cannot store secret %q: the name %s", e.Name, e.Reason)
}

// NewSecrets uses dir, which is made with the first secret.
func NewSecrets(dir string) *Secrets { return &Secrets{dir: dir} }

// Set stores one secret durably, replacing an older value. *SecretNameError.
func (s *Secrets) Set(plugin, name, value string) error {
	f := &fields{problems: &[]ManifestProblem{}}
	if !f.envName("", name) {
		return &SecretNameError{name, (*f.problems)[0].Message}
	}
	if value == "" || strings.ContainsRune(value, 0) {
		return fmt.Errorf("cannot store secret %q: its value is empty or holds a NUL character", name)
	}
	return s.update(plugin, func(m map[string]string) error {
		m[name] = value
		return nil
	})
}

// Delete removes one secret; *NotFoundError when there is none.
func (s *Secrets) Delete(plugin, name string) error {
	return s.update(plugin, func(m map[string]string) error {
		if _, ok := m[name]; !ok {
			return &NotFoundError{Kind: "secret", Name: name}
		}
		delete(m, name)
		return nil
	})
}

// Names lists what is stored for a plugin, sorted.
func (s *Secrets) Names(plugin string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.read(plugin)
	return slices.Sorted(maps.Keys(m)), err
}

// Values returns everything stored for the plugin, for its worker's start. A
// required name that is missing is a *MissingSecretError.
func (s *Secrets) Values(plugin string, required []string) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.read(plugin)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, name := range required {
		if _, ok := m[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, &MissingSecretError{Plugin: plugin, Names: missing}
	}
	return m, nil
}

func (s *Secrets) update(plugin string, edit func(map[string]string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.read(plugin)
	if err != nil {
		return err
	}
	if err := edit(m); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of secrets: %w", err)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("cannot write the secrets of %q: %w", plugin, err)
	}
	// Written aside, synced and renamed: a crash leaves the old or the new file.
	if err := renameio.WriteFile(s.file(plugin), b, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("cannot write the secrets of %q: %w", plugin, err)
	}
	return nil
}

func (s *Secrets) file(plugin string) string { return filepath.Join(s.dir, plugin+".json") }

// read refuses a file that others can read: its secrets are none any more.
func (s *Secrets) read(plugin string) (map[string]string, error) {
	if !ValidName(plugin) {
		return nil, &NameError{plugin}
	}
	info, err := os.Stat(s.file(plugin))
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the secrets of %q: %w", plugin, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("cannot use the secrets of %q: %s can be read by others (mode %#o); run: chmod 600 %s",
			plugin, s.file(plugin), info.Mode().Perm(), s.file(plugin))
	}
	b, err := os.ReadFile(s.file(plugin))
	if err != nil {
		return nil, fmt.Errorf("cannot read the secrets of %q: %w", plugin, err)
	}
	m := map[string]string{}
	if json.Unmarshal(b, &m) != nil { // the decoder's error would quote the content
		return nil, fmt.Errorf("cannot read the secrets of %q: %s is damaged; delete it and set them again", plugin, s.file(plugin))
	}
	return m, nil
}
