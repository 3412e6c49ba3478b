// Package readme runs what README.md and docs/plugins.md tell people to type, as
// it stands there.
package readme

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

var block = regexp.MustCompile("(?ms)^```(\\S+) (\\S+)(?: (\\S+))?\n(.*?)^```$")

// blocks returns the README's marked blocks: "session" → text, "shout/shout.py" → text.
func blocks(t *testing.T, root string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	found := map[string]string{}
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		name := m[2]
		if name == "plugin" {
			name = m[3]
		}
		found[name] = m[4]
	}
	return found
}

// build puts both programs into dir/bin.
func build(t *testing.T, root, dir string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/...")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestReadme_WhatItSaysWorksAsItStands(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	found := blocks(t, root)
	for _, name := range []string{"session", "shout/shout.py", "shout/manifest.yaml"} {
		require.NotEmpty(t, found[name], "README.md has no block %q", name)
	}
	built := t.TempDir()
	build(t, root, built)

	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/session.txtar", "testdata/plugin.txtar"},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Join(built, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			for link, target := range map[string]string{
				"bin":      filepath.Join(built, "bin"),
				"examples": filepath.Join(root, "examples"),
			} {
				if err := os.Symlink(target, filepath.Join(e.WorkDir, link)); err != nil {
					return err
				}
			}
			for name, text := range found {
				path := filepath.Join(e.WorkDir, "plugins", name)
				if name == "session" {
					path = filepath.Join(e.WorkDir, "session.sh")
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

func TestReadme_PluginIsAsShortAsItSays(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	code := strings.TrimSpace(blocks(t, root)["shout/shout.py"])
	lines := 0
	for line := range strings.Lines(code) {
		if strings.TrimSpace(line) != "" {
			lines++
		}
	}
	require.LessOrEqual(t, lines, 15)
}
