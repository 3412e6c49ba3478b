package scaffold

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/plugins"
)

func TestNew_WritesAPluginThatIsSound(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]names{
		"hello":           {"hello", "hello_plugin", "Hello"},
		"my-OCR.v2":       {"my-OCR.v2", "my_ocr_v2_plugin", "MyOCRV2"},
		"2fast":           {"2fast", "plugin_2fast_plugin", "Plugin2fast"},
		"class":           {"class", "plugin_class_plugin", "ClassPlugin"},
		"json":            {"json", "json_plugin", "Json"},
		"under_score-mix": {"under_score-mix", "under_score_mix_plugin", "UnderScoreMix"},
	} {
		dir := filepath.Join(t.TempDir(), name)
		files, err := New(name, dir)
		require.NoError(t, err, name)
		m, err := plugins.ReadManifest(filepath.Join(dir, "manifest.yaml"))
		require.NoError(t, err, name)
		assert.Equal(t, want, names{m.Name, m.Module, m.Class})
		assert.Empty(t, m.Warnings)
		assert.Contains(t, files, filepath.Join(dir, want.Module+".py"))
		assert.FileExists(t, filepath.Join(dir, "tests", "test_"+want.Module+".py"))
	}
}

func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "../up", "a/b", ".hidden", "with blank", "é"} {
		_, err := New(name, filepath.Join(t.TempDir(), "x"))
		var bad *plugins.NameError
		require.ErrorAs(t, err, &bad, name)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644))
	_, err := New("hello", dir)
	require.ErrorContains(t, err, "is not empty")
}
