// Package wiretest reads the transcripts in testdata/wire, for the tests of both
// layers of the protocol. testdata/wire/README.md is the format.
package wiretest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// Line is one line of a transcript.
type Line struct {
	Case, Level, Dir, Expect, Rule, By string
	Limits                             *struct {
		MaxHeader  int `json:"max_header"`
		MaxPayload int `json:"max_payload"`
	}
	Header     json.RawMessage
	HeaderText string `json:"header_text"`
	HeaderHex  string `json:"header_hex"`
	Payload    string
	PayloadB64 string `json:"payload_b64"`
	RawHex     string `json:"raw_hex"`
	EOF        bool
}

// Frame is one whole frame.
type Frame struct{ Header, Payload []byte }

// Transcript is one file.
type Transcript struct {
	First, Last Line
	Lines       []Line             // those between
	Bytes       map[string][]byte  // all bytes of each direction
	Frames      map[string][]Frame // the whole frames of each direction
}

// LimitsOrDefault are the limits of the case.
func (tr Transcript) LimitsOrDefault() wire.Limits {
	if l := tr.First.Limits; l != nil {
		return wire.Limits{MaxHeader: l.MaxHeader, MaxPayload: l.MaxPayload}
	}
	return wire.Limits{}.OrDefaults()
}

// BrokenDir is the direction of the last line.
func (tr Transcript) BrokenDir() string {
	if len(tr.Lines) == 0 {
		return ""
	}
	return tr.Lines[len(tr.Lines)-1].Dir
}

// Load reads one file.
func Load(t testing.TB, path string) Transcript {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []Line
	for s := range strings.Lines(string(text)) {
		var l Line
		dec := json.NewDecoder(strings.NewReader(s))
		if err := dec.Decode(&l); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		lines = append(lines, l)
	}
	if len(lines) < 2 {
		t.Fatalf("%s: a case has at least two lines", path)
	}
	tr := Transcript{
		First: lines[0], Last: lines[len(lines)-1], Lines: lines[1 : len(lines)-1],
		Bytes: map[string][]byte{}, Frames: map[string][]Frame{},
	}
	for _, l := range tr.Lines {
		if l.EOF {
			continue
		}
		raw, f := l.Decode(t)
		tr.Bytes[l.Dir] = append(tr.Bytes[l.Dir], raw...)
		if f != nil {
			tr.Frames[l.Dir] = append(tr.Frames[l.Dir], *f)
		}
	}
	return tr
}

// Decode returns the bytes of a line and, where it is one, the whole frame.
func (l Line) Decode(t testing.TB) ([]byte, *Frame) {
	t.Helper()
	if l.RawHex != "" {
		return unhex(t, l.RawHex), nil
	}
	f := Frame{Payload: []byte(l.Payload)}
	if l.PayloadB64 != "" {
		b, err := base64.StdEncoding.DecodeString(l.PayloadB64)
		if err != nil {
			t.Fatal(err)
		}
		f.Payload = b
	}
	switch {
	case l.HeaderText != "":
		f.Header = []byte(l.HeaderText)
	case l.HeaderHex != "":
		f.Header = unhex(t, l.HeaderHex)
	default:
		var b bytes.Buffer
		if err := json.Compact(&b, l.Header); err != nil {
			t.Fatal(err)
		}
		f.Header = b.Bytes()
	}
	return wire.AppendFrame(nil, f.Header, f.Payload), &f
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Paths lists the transcripts of the project.
func Paths(t testing.TB) []string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "../../../../..")
	paths, err := filepath.Glob(filepath.Join(root, "testdata/wire/*.jsonl"))
	if err != nil || len(paths) < 40 {
		t.Fatalf("found %d transcripts under %s (%v)", len(paths), root, err)
	}
	return paths
}
