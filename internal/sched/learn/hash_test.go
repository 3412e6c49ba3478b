package learn_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/sched/learn"
)

func TestConfigHash_SameMeaningSameHash(t *testing.T) {
	t.Parallel()
	groups := [][]string{
		{``, ` `, `null`, `{}`, "{ }\n"},
		{`{"a":1,"b":"x"}`, `{"b":"x","a":1}`, "{ \"a\" : 1.0,\n \"b\":\"x\"}", `{"a":10e-1,"b":"\u0078"}`, `{"a":0.1E+1,"b":"x"}`, `{"a":1e0,"b":"x"}`},
		{`{"a":0}`, `{"a":-0}`, `{"a":0.000}`, `{"a":0e7}`},
		{`{"a":1500}`, `{"a":1.5e3}`, `{"a":15e2}`},
		{`{"a":-1}`, `{"a":-1.00}`},
		{`{"a":"1"}`},
		{`{"a":"1e0"}`},
		{`{"a":[1]}`},
		{`{"a":[[1]]}`},
		{`{"a":[1,1]}`},
		{`{"a":11}`},
		{`{"a":true}`},
		{`{"a":null}`},
		{`{"a":9007199254740993}`},
		{`{"a":9007199254740992}`},
		{`{"a":1e999999999}`},
		{`{"a":1e99999999999999999999}`},
		{`[]`},
		{`[[],[]]`}, {`[[[]]]`},
		{`{"a":1,"b":"x"`}, // no JSON
		{`{"a":1,"b":"x"}}`},
	}
	seen := map[string]string{}
	for _, group := range groups {
		want := learn.ConfigHash(json.RawMessage(group[0]))
		require.Len(t, want, 16)
		require.Empty(t, seen[want], "%s and %s differ", group[0], seen[want])
		seen[want] = group[0]
		for _, same := range group[1:] {
			require.Equal(t, want, learn.ConfigHash(json.RawMessage(same)), "%s is %s", same, group[0])
		}
	}
	require.Equal(t, learn.ConfigHash(nil), learn.ConfigHash(json.RawMessage(`{}`)))
}

// respell writes v as JSON with keys in any order and numbers in any spelling.
func respell(t *rapid.T, v any) string {
	switch v := v.(type) {
	case map[string]any:
		keys := rapid.Permutation(slices.Sorted(maps.Keys(v))).Draw(t, "order")
		parts := make([]string, len(keys))
		for i, k := range keys {
			name, err := json.Marshal(k)
			require.NoError(t, err)
			parts[i] = string(name) + rapid.SampledFrom([]string{":", " : "}).Draw(t, "gap") + respell(t, v[k])
		}
		return "{" + strings.Join(parts, ",") + "}"
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = respell(t, v[i])
		}
		return "[" + strings.Join(parts, " ,") + "]"
	case int:
		if v == 0 {
			return rapid.SampledFrom([]string{"0", "-0", "0.00", "0e3"}).Draw(t, "spelling")
		}
		zeros := rapid.IntRange(1, 4).Draw(t, "zeros")
		tail := strings.Repeat("0", zeros)
		return rapid.SampledFrom([]string{
			fmt.Sprint(v), fmt.Sprintf("%d.%s", v, tail), fmt.Sprintf("%d%se-%d", v, tail, zeros),
		}).Draw(t, "spelling")
	default:
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return string(b)
	}
}

func anyValue(depth int) *rapid.Generator[any] {
	leaf := rapid.OneOf(
		rapid.IntRange(-5000, 5000).AsAny(), rapid.String().AsAny(), rapid.Bool().AsAny())
	if depth == 0 {
		return leaf
	}
	return rapid.OneOf(leaf,
		rapid.Map(rapid.SliceOfN(anyValue(depth-1), 0, 4), func(v []any) any { return v }),
		rapid.Map(rapid.MapOfN(rapid.String(), anyValue(depth-1), 0, 4), func(v map[string]any) any { return v }))
}

func TestConfigHash_Properties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		config := rapid.MapOfN(rapid.StringMatching(`[a-z]{1,3}`), anyValue(2), 1, 4).Draw(t, "config")
		plain, err := json.Marshal(config)
		require.NoError(t, err)
		want := learn.ConfigHash(plain)
		require.Equal(t, want, learn.ConfigHash(json.RawMessage(respell(t, config))))
		config["another"] = 1
		more, err := json.Marshal(config)
		require.NoError(t, err)
		require.NotEqual(t, want, learn.ConfigHash(more))
	})
}

func FuzzConfigHash(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,2.5e-3,null]}`, `nonsense`, `"\ud800"`, `1e-99999999999`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		want := learn.ConfigHash(config)
		var packed bytes.Buffer
		if json.Compact(&packed, config) == nil && learn.ConfigHash(packed.Bytes()) != want {
			t.Errorf("white space changes the hash of %q", config)
		}
	})
}
