package learn

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ConfigHash names a config by its meaning: the order of keys, white space, the
// spelling of strings (escapes) and of numbers (1, 1.0, 10e-1) do not matter.
// No config, null and {} are the same. Text that is not JSON is hashed as it is.
func ConfigHash(config json.RawMessage) string {
	var text []byte
	if v, err := decode(config); err == nil {
		text = canonical(nil, v)
	} else {
		text = append([]byte("text:"), config...)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

func decode(config json.RawMessage) (any, error) {
	if len(bytes.TrimSpace(config)) == 0 {
		return map[string]any{}, nil
	}
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, io.ErrUnexpectedEOF // something follows
	}
	if v == nil {
		v = map[string]any{}
	}
	return v, nil
}

func canonical(to []byte, v any) []byte {
	switch v := v.(type) {
	case map[string]any:
		to = append(to, '{')
		for _, k := range slices.Sorted(maps.Keys(v)) {
			to = strconv.AppendQuote(to, k)
			to = append(to, ':')
			to = append(canonical(to, v[k]), ',')
		}
		return append(to, '}')
	case []any:
		to = append(to, '[')
		for _, e := range v {
			to = append(canonical(to, e), ',')
		}
		return append(to, ']')
	case json.Number:
		return append(to, number(v.String())...)
	case string:
		return strconv.AppendQuote(to, v)
	case bool:
		return strconv.AppendBool(to, v)
	default:
		return append(to, "null"...)
	}
}

// number writes a JSON number as digits and a power of ten, exactly: floats of
// the same value get the same text, and those of more digits than a float64 has
// stay apart.
func number(s string) string {
	rest, negative := strings.CutPrefix(s, "-")
	mantissa, exponent := rest, ""
	if i := strings.IndexAny(rest, "eE"); i >= 0 {
		mantissa, exponent = rest[:i], rest[i+1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return "0"
	}
	var exp int64
	if exponent != "" {
		var err error
		if exp, err = strconv.ParseInt(exponent, 10, 32); err != nil {
			return s // beyond anything that is a quantity: its spelling is its value
		}
	}
	exp -= int64(len(fraction))
	short := strings.TrimRight(digits, "0")
	exp += int64(len(digits) - len(short))
	sign := ""
	if negative {
		sign = "-"
	}
	return sign + short + "e" + strconv.FormatInt(exp, 10)
}
