package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wiretest"
)

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// depth is how deep a valid JSON text is nested.
func depth(b []byte) int {
	dec := json.NewDecoder(bytes.NewReader(b))
	most, now := 0, 0
	for {
		t, err := dec.Token()
		if err != nil {
			return most
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			now++
			most = max(most, now)
		case json.Delim('}'), json.Delim(']'):
			now--
		}
	}
}

// FuzzParseHeader holds the scanner equal to encoding/json: the same texts are
// refused, and what is accepted has the same members.
func FuzzParseHeader(f *testing.F) {
	for _, path := range wiretest.Paths(f) {
		tr := wiretest.Load(f, path)
		for _, frames := range tr.Frames {
			for _, fr := range frames {
				f.Add(fr.Header)
			}
		}
	}
	for _, s := range []string{`{}`, `[]`, ` {"a" : -0.1e+5 } `, `{"a":01}`, `{"a":1.}`, `{"a":"\u12g4"}`, `{"a":"\ud800"}`, "{\"a\":\"\x01\"}", `{"a":tru}`, `{"a":[1,]}`, `{"a"`, `{"a":{"b":[{},[],""]}}x`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := wire.ParseHeader(b)
		var members map[string]json.RawMessage
		jsonErr := json.Unmarshal(b, &members)
		var broken *wire.ProtocolError
		if err != nil && !errors.As(err, &broken) {
			t.Fatalf("%q: %T is no protocol error", b, err)
		}
		rule := wire.Rule("")
		if broken != nil {
			rule = broken.Rule
		}
		if !utf8.Valid(b) {
			if rule != wire.HeaderNotUTF8 {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		if jsonErr != nil || members == nil {
			if rule != wire.HeaderNotJSON && rule != wire.HeaderTooDeep {
				t.Fatalf("%q: encoding/json says %v, the scanner %v", b, jsonErr, err)
			}
			return
		}
		if tooDeep := depth(b) > wire.MaxDepth; tooDeep != (rule == wire.HeaderTooDeep) {
			t.Fatalf("%q: depth %d, %v", b, depth(b), err)
		}
		if rule == wire.HeaderNotJSON {
			t.Fatalf("%q: encoding/json accepts it, the scanner says %v", b, err)
		}
		if err != nil {
			return
		}
		same(t, "method", members["method"], h.Method)
		same(t, "id", members["id"], h.ID)
		for name, got := range map[string][]byte{"params": h.Params, "result": h.Result, "error": h.Error} {
			if !bytes.Equal(members[name], got) {
				t.Fatalf("%q: %s is %q, encoding/json says %q", b, name, got, members[name])
			}
		}
		walk(t, h.Params)
	})
}

// same compares a raw string with the text that was read from it.
func same(t *testing.T, name string, raw json.RawMessage, got []byte) {
	t.Helper()
	if raw == nil {
		if len(got) != 0 {
			t.Fatalf("%s is %q, but there is none", name, got)
		}
		return
	}
	var want string
	if err := json.Unmarshal(raw, &want); err != nil || want != string(got) {
		t.Fatalf("%s is %q, encoding/json says %q (%v)", name, got, want, err)
	}
}

// walk compares the members of an object one by one.
func walk(t *testing.T, raw []byte) {
	t.Helper()
	if raw == nil {
		return
	}
	var want map[string]json.RawMessage
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	o := wire.NewObject(raw)
	for o.Next() {
		got[string(o.Key)] = string(o.Value)
	}
	if o.Err() != nil || len(got) != len(want) {
		t.Fatalf("%q: %d members, encoding/json finds %d (%v)", raw, len(got), len(want), o.Err())
	}
	for k, v := range want {
		if got[k] != string(v) {
			t.Fatalf("%q: member %q is %q, encoding/json says %q", raw, k, got[k], v)
		}
		var s string
		if text, ok := wire.Text(v); ok && (json.Unmarshal(v, &s) != nil || s != string(text)) {
			t.Fatalf("%q reads as %q, encoding/json says %q", v, text, s)
		}
	}
}

// FuzzAppendString: what is written is JSON and reads back as the same text.
func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\\n\t\x00\x1f", "grüße 😀\u2028", "\xff\xfe", "a\x80b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := wire.AppendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil || !utf8.Valid(b) {
			t.Fatalf("%q became %q: %v", s, b, err)
		}
		if want := string([]rune(s)); got != want {
			t.Fatalf("%q reads back as %q", want, got)
		}
		if text, ok := wire.Text(b); !ok || string(text) != got {
			t.Fatalf("Text(%q) = %q", b, text)
		}
	})
}

// FuzzReader: whatever arrives, and however it is cut, the frames are the same,
// they are the bytes that arrived, and nothing panics.
func FuzzReader(f *testing.F) {
	for _, path := range wiretest.Paths(f) {
		for _, b := range wiretest.Load(f, path).Bytes {
			f.Add(b)
		}
	}
	limits := wire.Limits{MaxHeader: 70_000, MaxPayload: 300_000}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err1 := decodeAll(bytes.NewReader(b), limits)
		pieces, err2 := decodeAll(iotest.OneByteReader(bytes.NewReader(b)), limits)
		if len(whole) != len(pieces) || (err1 == nil) != (err2 == nil) {
			t.Fatalf("whole: %d frames, %v; byte by byte: %d frames, %v", len(whole), err1, len(pieces), err2)
		}
		var again []byte
		for i, fr := range whole {
			if !bytes.Equal(fr.Header, pieces[i].Header) || !bytes.Equal(fr.Payload, pieces[i].Payload) {
				t.Fatalf("frame %d depends on how it was cut", i)
			}
			again = wire.AppendFrame(again, fr.Header, fr.Payload)
		}
		if !bytes.HasPrefix(b, again) || (err1 == nil && len(again) != len(b)) {
			t.Fatalf("%d bytes in, %d bytes out, %v", len(b), len(again), err1)
		}
	})
}
