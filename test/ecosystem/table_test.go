//go:build ecosystem

package ecosystem

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

type result string

const (
	notOffered result = "–"
	works      result = "yes"
	broken     result = "**no**"
)

// row is one plugin on one transport.
type row struct {
	plugin, version, env, python, transport string
	unary, stream, cancel, config, monitor  result
}

const preamble = `# Compatibility

Published plugins of the Python system that cjmd succeeds, run unchanged: installed from the package index with the
versions below (test/ecosystem/locks), described by the manifest that the installer of their own time writes, driven
through the daemon's API. **native** is cjmd's own runtime, on which the base library's server is not used; **http** is
` + "`runtime: http`" + `, the base library's own worker behind a Unix socket.

This table is written by ` + "`make ecosystem`" + ` from what it saw. Every "yes" is a test with an expected result:
unary calls with results and errors, streams, a cancel of work that would go on for minutes (its processes gone, the next
call served), a change of the configuration while the worker lives, the plugin registered as the system monitor.
"–" is not offered by the plugin, or nothing in it runs long enough to be cancelled.

| plugin | version | base library | Python | transport | unary | stream | cancel | config | monitor |
|---|---|---|---|---|---|---|---|---|---|
`

func table(rows []row) string {
	var b bytes.Buffer
	b.WriteString(preamble)
	for _, r := range rows {
		if r.monitor == "" {
			r.monitor = notOffered
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n",
			r.plugin, r.version, r.env, r.python, r.transport, r.unary, r.stream, r.cancel, r.config, r.monitor)
	}
	return b.String()
}

// packageVersion is what the environment's lock pins.
func packageVersion(t *testing.T, env, name string) string {
	t.Helper()
	lock, err := os.ReadFile(filepath.Join("locks", env+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(lock)) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), name+"=="); ok {
			return version
		}
	}
	t.Fatalf("%s is not pinned in locks/%s.txt", name, env)
	return ""
}

func pythonVersion(t *testing.T, python string) string {
	t.Helper()
	out, err := exec.Command(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
