package wire_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wiretest"
)

type frame = wiretest.Frame

// decodeAll reads frames and their headers until the first error.
func decodeAll(src io.Reader, limits wire.Limits) ([]frame, error) {
	r := wire.NewReader(src, limits)
	var out []frame
	for {
		h, n, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		f := frame{Header: bytes.Clone(h)}
		if _, err := wire.ParseHeader(h); err != nil {
			return out, err
		}
		if f.Payload, err = r.TakePayload(); err != nil {
			return out, err
		}
		if len(f.Payload) != n {
			return out, errors.New("a payload is not as long as announced")
		}
		out = append(out, f)
	}
}

func TestTranscripts_DecodeTheSameHoweverTheyAreCut(t *testing.T) {
	for _, path := range wiretest.Paths(t) {
		tr := wiretest.Load(t, path)
		t.Run(tr.First.Case, func(t *testing.T) {
			t.Parallel()
			if want := strings.TrimSuffix(filepath.Base(path), ".jsonl"); tr.First.Case != want {
				t.Fatalf("the case is called %q", tr.First.Case)
			}
			limits := tr.LimitsOrDefault()
			for dir, b := range tr.Bytes {
				cuts := map[string]io.Reader{
					"whole": bytes.NewReader(b), "bytes": iotest.OneByteReader(bytes.NewReader(b)),
					"random": randomReader{bytes.NewReader(b)}, "eof with data": iotest.DataErrReader(bytes.NewReader(b)),
				}
				for cut, src := range cuts {
					got, err := decodeAll(src, limits)
					check(t, tr, dir+" "+cut, dir, got, err)
				}
			}
		})
	}
}

// check compares what a decoder made of one direction with what it must.
func check(t *testing.T, tr wiretest.Transcript, what, dir string, got []frame, err error) {
	t.Helper()
	want := tr.Frames[dir]
	breaksHere := tr.Last.Expect == "protocol_error" && dir == tr.BrokenDir()
	var broken *wire.ProtocolError
	switch {
	case breaksHere && tr.Last.By == "decoder":
		if !errors.As(err, &broken) || string(broken.Rule) != tr.Last.Rule {
			t.Fatalf("%s: got %v, want rule %s", what, err, tr.Last.Rule)
		}
		if len(got) > len(want) {
			t.Fatalf("%s: %d frames, want at most %d", what, len(got), len(want))
		}
	case breaksHere: // the conversation is what is wrong, or both
		if err != nil && (!errors.As(err, &broken) || string(broken.Rule) != tr.Last.Rule) {
			t.Fatalf("%s: got %v, want rule %s", what, err, tr.Last.Rule)
		}
	case err != nil:
		t.Fatalf("%s: %v", what, err)
	case len(got) != len(want):
		t.Fatalf("%s: %d frames, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i].Header, want[i].Header) || !bytes.Equal(got[i].Payload, want[i].Payload) {
			t.Fatalf("%s: frame %d is %q %q, want %q %q", what, i, got[i].Header, got[i].Payload, want[i].Header, want[i].Payload)
		}
	}
}

// randomReader returns pieces of random length.
type randomReader struct{ src io.Reader }

func (r randomReader) Read(p []byte) (int, error) {
	return r.src.Read(p[:min(len(p), 1+rand.IntN(40))])
}
