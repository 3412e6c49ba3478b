package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

// reference renders the table of docs/configuration.md.
func reference() string {
	defaults := Defaults(Dirs{State: "/var/lib/cjmd", Log: "/var/log/cjmd", Run: "/run/cjmd", Cache: "/var/cache/cjmd"})
	flags := map[string]string{}
	for _, f := range flagKeys {
		flags[f.key] = "`--" + f.flag + "`"
	}
	var b strings.Builder
	b.WriteString("| key | kind | default | environment | flag | SIGHUP | meaning |\n|---|---|---|---|---|---|---|\n")
	for _, k := range Keys() {
		reload := ""
		if k.Reload {
			reload = "yes"
		}
		def := format(k.value(&defaults))
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` | %s | %s | %s |\n", k.Name, k.Kind(), def, k.Env, flags[k.Name], reload, strings.ReplaceAll(k.Doc, "|", "\\|"))
	}
	return b.String()
}

const marker = "<!-- The table below is written by: go test ./internal/config -run Reference -update -->\n"

func TestReference_IsTheSchema(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "docs", "configuration.md")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	head, table, ok := strings.Cut(string(text), marker)
	require.True(t, ok, "docs/configuration.md has lost its marker")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(head+marker+"\n"+reference()), 0o644))
		return
	}
	require.Equal(t, reference(), strings.TrimPrefix(table, "\n"), "run: go test ./internal/config -run Reference -update")
}
