package plugins

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The page for plugin authors is true: its example parses, and it names every
// variable and template.
func TestManifestPage_IsTrue(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "manifests.md"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), "```yaml\n")
	require.True(t, ok)
	example, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	m, err := ParseManifest("/d/manifest.yaml", []byte(example))
	require.NoError(t, err)
	require.Empty(t, m.Warnings)

	f := &fields{obj: map[string]any{}, problems: new([]ManifestProblem)}
	readV3(f, &Manifest{})
	for _, key := range f.seen {
		switch key {
		case "author", "interface", "db_path", "runtime": // said by the schema alone
		default:
			require.Contains(t, string(text), key)
		}
	}
	words := strings.FieldsFunc(string(text), func(r rune) bool { return strings.ContainsRune(" `\n,:;().", r) })
	for _, name := range append(append(append([]string{}, passedPrefixes...), neverPassed...), "LD_LIBRARY_PATH", "XDG_CACHE_HOME") {
		require.Contains(t, words, name)
	}
	for _, name := range templates {
		require.Contains(t, string(text), "${"+name+"}")
	}
}

// The example plugins of the project are found and usable.
func TestExamples_AreGoodManifests(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs(filepath.Join("..", "..", "examples", "plugins"))
	require.NoError(t, err)
	list := scan([]string{dir}, time.Now())
	if len(list.plugins) == 0 {
		t.Skip("no examples here")
	}
	for _, p := range list.plugins {
		require.NoError(t, p.Err, p.Path)
		require.Empty(t, p.Manifest.Warnings, p.Path)
		require.Equal(t, "v3", p.Manifest.Format)
	}
}
