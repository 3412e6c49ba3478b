package plugins

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSecrets_LiveInPrivateFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "secrets")
	s := NewSecrets(dir)
	names, err := s.Names("whisper")
	require.NoError(t, err)
	require.Empty(t, names)

	require.NoError(t, s.Set("whisper", "HF_TOKEN", "one"))
	require.NoError(t, s.Set("whisper", "HF_TOKEN", "two"))
	require.NoError(t, s.Set("whisper", "API_KEY", "k"))
	require.NoError(t, s.Set("ocr", "API_KEY", "other"))

	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "whisper.json"): 0o600} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}
	names, err = NewSecrets(dir).Names("whisper") // after a restart
	require.NoError(t, err)
	require.Equal(t, []string{"API_KEY", "HF_TOKEN"}, names)
	values, err := s.Values("whisper", []string{"HF_TOKEN"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"HF_TOKEN": "two", "API_KEY": "k"}, values)

	require.NoError(t, s.Delete("whisper", "HF_TOKEN"))
	var gone *NotFoundError
	require.ErrorAs(t, s.Delete("whisper", "HF_TOKEN"), &gone)
	_, err = s.Values("whisper", []string{"API_KEY", "HF_TOKEN"})
	var missing *MissingSecretError
	require.ErrorAs(t, err, &missing)
	require.Equal(t, []string{"HF_TOKEN"}, missing.Names)
	require.ErrorContains(t, err, "cjm-ctl set-secret whisper HF_TOKEN")
}

func TestSecrets_RefuseBadNamesAndOpenFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := NewSecrets(dir)
	var bad *NameError
	require.ErrorAs(t, s.Set("../x", "A", "v"), &bad)
	require.ErrorContains(t, s.Set("p", "A=B", "v"), "environment variable")
	require.ErrorContains(t, s.Set("p", "LISTEN_FDS", "v"), "daemon itself")
	require.ErrorContains(t, s.Set("p", "A", ""), "empty")

	require.NoError(t, s.Set("p", "A", "v3ry-secret"))
	file := filepath.Join(dir, "p.json")
	require.NoError(t, os.Chmod(file, 0o644))
	_, err := s.Values("p", nil)
	require.ErrorContains(t, err, "chmod 600")

	require.NoError(t, os.WriteFile(file, []byte(`{"A": "v3ry-secret"`), 0o600))
	require.NoError(t, os.Chmod(file, 0o600))
	_, err = s.Values("p", nil)
	require.ErrorContains(t, err, "damaged")
	require.NotContains(t, err.Error(), "v3ry-secret")
}

func TestSecrets_ConcurrentWritersLoseNothing(t *testing.T) {
	t.Parallel()
	s := NewSecrets(t.TempDir())
	var wg sync.WaitGroup
	for _, name := range []string{"A", "B", "C", "D", "E", "F"} {
		wg.Go(func() { _ = s.Set("p", name, "v") })
	}
	wg.Wait()
	names, err := s.Names("p")
	require.NoError(t, err)
	require.Len(t, names, 6)
}
