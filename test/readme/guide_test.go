package readme

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var fence = regexp.MustCompile("(?m)^```.+$")

// guide is docs/plugins.md taken apart.
type guide struct {
	files  map[string]string // below the working directory
	daemon string
	runs   []string // shell blocks in order
	tests  []string // Python files to execute
}

func readGuide(t *testing.T, root string) guide {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "plugins.md"))
	require.NoError(t, err)
	g := guide{files: map[string]string{}}
	found := block.FindAllStringSubmatch(string(text), -1)
	require.Len(t, fence.FindAllString(string(text), -1), len(found), "a block has no mark: nothing would run it")
	for _, m := range found {
		kind, path, body := m[2], m[3], m[4]
		switch kind {
		case "plugin":
			g.files[filepath.Join("plugins", path)] = body
		case "test":
			g.files[path] = body
			g.tests = append(g.tests, path)
		case "daemon":
			g.daemon = body
		case "run":
			g.runs = append(g.runs, body)
		default:
			t.Fatalf("nothing is known about blocks marked %q", kind)
		}
	}
	return g
}

// TestGuide_EverySnippetRuns types what docs/plugins.md says and compares what
// it prints with the lines after "# →".
func TestGuide_EverySnippetRuns(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	g := readGuide(t, root)
	require.NotEmpty(t, g.daemon)
	work := t.TempDir()
	build(t, root, work)
	for path, text := range g.files {
		path = filepath.Join(work, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	for _, path := range g.tests {
		cmd := exec.CommandContext(t.Context(), "python3", path)
		cmd.Dir, cmd.Env = work, append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "sdk", "python"), "PYTHONDONTWRITEBYTECODE=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", path, out)
	}
	env := append(os.Environ(), "PATH="+filepath.Join(work, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+work,
		"CJMD_STATE_DIR="+filepath.Join(work, "state"), "CJMD_SERVER_LISTEN=none",
		"CJMD_SERVER_SOCKET="+filepath.Join(work, "s"), "CJMD_SOCKET="+filepath.Join(work, "s"))
	serve(t, work, g.daemon, env)
	for _, run := range g.runs {
		session(t, work, run, env)
	}
}

// serve starts the daemon as the guide says and returns when it serves.
func serve(t *testing.T, work, command string, env []string) {
	t.Helper()
	cmd := exec.Command("bash", "-euc", "exec "+strings.TrimSpace(command))
	cmd.Dir, cmd.Env = work, append(env, "CJMD_LOG_FORMAT=json")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines, ended := bufio.NewReader(stderr), make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		require.NoError(t, cmd.Wait(), "the daemon's end")
	})
	serving := make(chan string, 1)
	go func() {
		defer close(ended)
		var said strings.Builder
		for {
			line, err := lines.ReadString('\n')
			said.WriteString(line)
			if strings.Contains(line, `"msg":"serving"`) {
				serving <- ""
				_, _ = io.Copy(io.Discard, lines)
				return
			}
			if err != nil {
				serving <- said.String()
				return
			}
		}
	}()
	select {
	case said := <-serving:
		require.Empty(t, said, "the daemon ended")
	case <-time.After(time.Minute):
		t.Fatal("the daemon does not serve")
	}
}

// session runs one shell block and checks each expectation against what came
// since the one before.
func session(t *testing.T, work, text string, env []string) {
	t.Helper()
	const mark = "@@ step"
	var script strings.Builder
	var wants [][]string // per step
	open := false        // commands of a step were written, its expectations not yet
	for line := range strings.Lines(text) {
		want, isWant := strings.CutPrefix(strings.TrimSpace(line), "# → ")
		if !isWant {
			script.WriteString(line)
			open = true
			continue
		}
		if open {
			fmt.Fprintln(&script, "echo '"+mark+"'")
			wants = append(wants, nil)
			open = false
		}
		wants[len(wants)-1] = append(wants[len(wants)-1], want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script.String())
	cmd.Dir, cmd.Env, cmd.WaitDelay = work, env, 5*time.Second
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", text, out)
	parts := strings.Split(string(out), mark+"\n")
	require.GreaterOrEqual(t, len(parts), len(wants), "%s\n%s", text, out)
	for i, step := range wants {
		rest := parts[i]
		for _, want := range step {
			_, after, ok := strings.Cut(rest, want)
			require.True(t, ok, "%s\nprinted\n%s\nwithout %q in its place", text, parts[i], want)
			rest = after
		}
	}
}
