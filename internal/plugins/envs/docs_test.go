package envs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The file that docs/install.md shows is one that is read, and its table has
// every key there is.
func TestInstallPage_IsTrue(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "install.md"))
	require.NoError(t, err)
	page := string(raw)
	_, rest, found := strings.Cut(page, "```yaml\n")
	require.True(t, found)
	yaml, _, found := strings.Cut(rest, "```")
	require.True(t, found)
	dir := t.TempDir()
	write(t, dir, "environment.yml", "dependencies: [python]\n")
	write(t, dir, "extra.txt", "idna\n")
	write(t, dir, "vad/manifest.yaml", "name: vad\nmodule: vad\nclass: Vad\n")
	f, err := ReadFile(write(t, dir, "plugins.yaml", yaml))
	require.NoError(t, err)
	require.Len(t, f.Entries, 3)
	assert.Equal(t, []string{filepath.Join(dir, "extra.txt")}, f.Entries[1].ReqFiles)

	// Reading an entry asks for every key; all of them are told.
	var problems []Problem
	node, err := parseYAML([]byte("name: a\npackage: b\n"))
	require.NoError(t, err)
	o, ok := openObject(node, "", &problems)
	require.True(t, ok)
	readEntry(o, dir, DialectPlugins)
	for _, key := range o.seen {
		assert.Contains(t, page, key)
	}
}
