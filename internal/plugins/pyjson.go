package plugins

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"unicode/utf16"
)

// SchemaHash is the hash of a config schema as the Python installers write it:
// over json.dumps with sorted keys, no blanks and ASCII alone.
func SchemaHash(schema json.RawMessage) (string, error) {
	d := json.NewDecoder(bytes.NewReader(schema))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", fmt.Errorf("cannot hash a config schema: %w", err)
	}
	var b bytes.Buffer
	writePyJSON(&b, v)
	sum := sha256.Sum256(b.Bytes())
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// writePyJSON writes what Python's
// json.dumps(v, sort_keys=True, separators=(",", ":")) writes, byte for byte.
func writePyJSON(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		fmt.Fprint(b, v)
	case string:
		writePyText(b, v)
	case json.Number:
		b.WriteString(pyJSONNumber(string(v)))
	case []any:
		b.WriteByte('[')
		for i, x := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writePyJSON(b, x)
		}
		b.WriteByte(']')
	case map[string]any:
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(v)) { // bytes of UTF-8 sort like code points
			if i > 0 {
				b.WriteByte(',')
			}
			writePyText(b, k)
			b.WriteByte(':')
			writePyJSON(b, v[k])
		}
		b.WriteByte('}')
	}
}

// pyJSONNumber is what json.dumps makes of what json.loads read: a number
// without point and exponent is an integer of any size, every other a float.
func pyJSONNumber(n string) string {
	if !strings.ContainsAny(n, ".eE") {
		if i, ok := new(big.Int).SetString(n, 10); ok {
			return i.String()
		}
		return n
	}
	switch s := pyNumber(n); s {
	case "inf":
		return "Infinity"
	case "-inf":
		return "-Infinity"
	default:
		return s
	}
}

func writePyText(b *bytes.Buffer, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r >= 0x20 && r < 0x7f:
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
}
