package jobs

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// An event's data reads byte for byte as json.Marshal writes it.
func TestEventData_IsWhatMarshalWrites(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z <>&"\\\\\x00-\x1f\x{2028}é]{0,12}`))
		value := rapid.Custom(func(rt *rapid.T) any {
			s := text.Draw(rt, "text")
			return []any{s, ID(s), Phase(s), Category(s), rapid.Int().Draw(rt, "n"), rapid.Int32().Draw(rt, "n"), rapid.Int64().Draw(rt, "n"),
				true, eventData(nil), eventData{s: 1}, nil, 0.25, []ID{"a"}, map[string]string{s: s}, time.Unix(5, 7).UTC(), Mode(s),
			}[rapid.IntRange(0, 15).Draw(rt, "kind")]
		})
		data := eventData(rapid.MapOfN(text, value, 0, 12).Draw(rt, "data"))
		want, err := json.Marshal(data)
		require.NoError(rt, err)
		require.Equal(rt, string(want), string(data.appendJSON(nil)))
	})
}
