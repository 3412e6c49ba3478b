package plugins

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/execspec"
)

func TestExec_IsRead(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("/d/m.yaml", []byte(`
name: tool
version: "2"
runtime: exec
command: [./tool, -q]
exec:
  args: [-i, "{kwargs.in}", ["-n", "{kwargs.n}"], 3]
  stdin: {text: "{kwargs.text}"}
  stdout: ndjson
  result: {file: out.json, type: json}
  progress: [{from: stdout, pattern: '(?P<done>\d+)', total: 10}]
  exit_codes: {"2": user_input, "75": transient}
  cancel_signal: TERM
  allow_options: true
`[1:]))
	require.NoError(t, err)
	require.Equal(t, &execspec.Spec{
		Name: "tool", Version: "2", Here: "/d", Command: []string{"/d/tool", "-q"},
		Args:  []execspec.Arg{{Text: "-i"}, {Text: "{kwargs.in}"}, {Group: []string{"-n", "{kwargs.n}"}}, {Text: "3"}},
		Stdin: execspec.Stdin{Text: "{kwargs.text}"}, Stdout: "ndjson", Result: &execspec.Result{File: "out.json", Type: "json"},
		Progress:  []execspec.Progress{{From: "stdout", Pattern: `(?P<done>\d+)`, Total: "10"}},
		ExitCodes: map[string]string{"2": "user_input", "75": "transient"}, CancelSignal: "TERM", AllowOptions: true,
	}, m.Exec)
}

func TestExec_EveryProblemHasItsPlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`args: [{kwargs.x}]`:         "exec.args[0] must be text",
		`args: ["{kwarg.x}"]`:        "exec.args[0] has the placeholder {kwarg.x}; known are {kwargs.…}",
		`args: ["{kwargs.x"]`:        "exec.args[0] has a single brace",
		`args: [[a, b]]`:             "exec.args[0] is a group without a value that may be missing",
		`shell: true`:                "exec.shell is no known key",
		`stdout: {a: b}`:             "exec.stdout must be text",
		`progress: [{pattern: "("}]`: "exec.progress[0].pattern is no regular expression",
	} {
		_, err := ParseManifest("/d/m.yaml", []byte("name: t\nruntime: exec\ncommand: [x]\nexec: {"+text+"}\n"))
		require.ErrorContains(t, err, want, text)
	}
	_, err := ParseManifest("/d/m.yaml", []byte("name: t\nruntime: exec\ncommand: [x]\nexec: {args: [\"{x}\"], stdouts: x, result: {}, progress: [{}]}\n"))
	var all *ManifestError
	require.ErrorAs(t, err, &all)
	require.Len(t, all.Problems, 4) // each once
	_, err = ParseManifest("/d/m.yaml", []byte("name: t\nmodule: m\nclass: C\nexec: {}\n"))
	require.ErrorContains(t, err, `exec is for runtime exec`)
}

func TestRuntime_OldManifestsMayKeepTheirServer(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("/d/a.json", []byte(`{"name":"a","module":"m","class":"C","python_path":"/p","runtime":"http"}`))
	require.NoError(t, err)
	require.Equal(t, "http", m.Runtime)
	require.Empty(t, m.Warnings)
	v2 := `{"format_version":"2.0","install":{"python_path":"/p"},"code":{"name":"a","module":"m","class":"C"},"overrides":{"runtime":%q}}`
	m, err = ParseManifest("/d/a.json", []byte(strings.Replace(v2, "%q", `"http"`, 1)))
	require.NoError(t, err)
	require.Equal(t, "http", m.Runtime)
	m, err = ParseManifest("/d/a.json", []byte(strings.Replace(v2, "%q", `"exec"`, 1)))
	require.NoError(t, err)
	require.Equal(t, "native", m.Runtime)
	require.Len(t, m.Warnings, 1)
}

// The page about programs is true: its manifests parse, and it names every key
// and every placeholder.
func TestExecPage_IsTrue(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "exec.md"))
	require.NoError(t, err)
	for _, file := range []string{"manifest.yaml", "greet.sh"} { // what test/e2e runs
		content, err := os.ReadFile(filepath.Join("..", "..", "test", "e2e", "testdata", "plugins", "greet", file))
		require.NoError(t, err)
		require.Contains(t, string(text), "\n"+string(content)+"```")
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	require.Len(t, blocks, 2)
	for _, b := range blocks {
		b, _, _ = strings.Cut(b, "```")
		if !strings.Contains(b, "name:") {
			b = "name: n\nruntime: exec\ncommand: [ffmpeg]\n" + b
		}
		m, err := ParseManifest("/d/manifest.yaml", []byte(b))
		require.NoError(t, err)
		require.NotNil(t, m.Exec)
	}
	for _, key := range append([]string{"args", "stdin", "stdout", "result", "progress", "exit_codes", "cancel_signal", "allow_options"}, execspec.Names...) {
		require.Contains(t, string(text), key)
	}
}
