package workercheck_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

func protocolPage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), "docs/worker-protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDocument_WorkerIn40LinesPasses(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on PATH")
	}
	_, rest, _ := strings.Cut(protocolPage(t), "<!-- worker:begin -->\n```python\n")
	code, _, found := strings.Cut(rest, "```\n<!-- worker:end -->")
	if !found {
		t.Fatal("the page has no worker between its marks")
	}
	rep := check(t, python, "-c", code)
	if !rep.OK() {
		t.Fatalf("%d failed", rep.Failed)
	}
	for _, c := range rep.Checks {
		if c.Status == "skip" && !strings.Contains(c.Seen, "capability") && !strings.Contains(c.Seen, "cannot start a child") {
			t.Fatalf("%s was skipped: %s", c.Name, c.Seen)
		}
	}
}

// TestDocument_BytesAreFrames decodes the hex of the page and compares it with
// the text beside it.
func TestDocument_BytesAreFrames(t *testing.T) {
	t.Parallel()
	_, section, found := strings.Cut(protocolPage(t), "## 13. Bytes")
	if !found {
		t.Fatal("the page has no section of bytes")
	}
	var raw []byte
	var text strings.Builder
	frames := 0
	for _, m := range regexp.MustCompile(`(?m)^((?:[0-9a-f]{2} )+) *(\S.*)$`).FindAllStringSubmatch(section, -1) {
		b, err := hex.DecodeString(strings.ReplaceAll(m[1], " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", m[1], err)
		}
		raw = append(raw, b...)
		if strings.HasPrefix(m[2], "header ") {
			frames++
			continue
		}
		text.WriteString(m[2])
	}
	r := wire.NewReader(bytes.NewReader(raw), wire.Limits{})
	var got strings.Builder
	for range frames {
		h, _, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wire.ParseHeader(h); err != nil {
			t.Fatal(err)
		}
		got.Write(h)
		p, err := r.Payload()
		if err != nil {
			t.Fatal(err)
		}
		got.Write(p)
	}
	if frames != 3 || got.String() != text.String() {
		t.Fatalf("%d frames; the bytes are\n%s\nthe text is\n%s", frames, &got, &text)
	}
}
