package strict

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzScan(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.5e3,"x\u00e9\ud83d\ude00",null,true]}`, `[]`, `{"a":1,"a":2}`, `"\ud800"`, `-0.0`, `1e5`, `{"args":[{"x":[]}]}`, " { } ", `[1,]`, "\xff"} {
		f.Add([]byte(s))
	}
	sh := &Shape{Fields: map[string]*Shape{"args": {Payload: true}}}
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := Scan(data, sh, 64)
		if err != nil {
			return
		}
		// What we accept is JSON, and means the same to the standard library.
		require.True(t, json.Valid(data), "%q", data)
		whole, err := Scan(data, nil, 64)
		require.NoError(t, err)
		dec := json.NewDecoder(strings.NewReader(string(data)))
		dec.UseNumber()
		var want any
		require.NoError(t, dec.Decode(&want))
		require.Equal(t, want, whole)
		_ = tree
	})
}

func TestScan_AcceptsWhatJSONIs(t *testing.T) {
	t.Parallel()
	for _, good := range []string{`{}`, `[]`, `0`, `-1.5E+10`, `"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"`, " \t\r\n[ 1 , 2 ]\n", `{"":{"":[]}}`, `null`, `true`, `false`} {
		got, err := Scan([]byte(good), nil, 64)
		require.NoError(t, err, good)
		dec := json.NewDecoder(strings.NewReader(good))
		dec.UseNumber()
		var want any
		require.NoError(t, dec.Decode(&want))
		require.Equal(t, want, got, good)
	}
	for _, bad := range []string{``, `{`, `[1`, `01`, `1.`, `.5`, `+1`, `1e`, `"\x"`, `"\u12g4"`, "\"\n\"", `{"a"}`, `{"a":}`, `{a:1}`, `[1 2]`, `nul`, `{"a":1}}`, `'a'`} {
		_, err := Scan([]byte(bad), nil, 64)
		require.Error(t, err, bad)
		require.False(t, json.Valid([]byte(bad)), bad)
	}
	wide := "{"
	for i := range 100 {
		wide += fmt.Sprintf(`"k%d":%d,`, i, i)
	}
	_, err := Scan([]byte(wide+`"z":1}`), nil, 64)
	require.NoError(t, err)
	_, err = Scan([]byte(wide+`"k7":1}`), nil, 64)
	require.Error(t, err, "found among many keys, too")
}

func BenchmarkScan_1MiBPayload(b *testing.B) {
	body := []byte(`{"plugin":"textstats","args":[` + strings.Repeat(`{"key":[1,2,3,"some text"]},`, 40_000) + `1]}`)
	sh := &Shape{Fields: map[string]*Shape{"args": {Payload: true}}}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(body, sh, 64); err != nil {
			b.Fatal(err)
		}
	}
}
