package plugins

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// This file is Python's view of values: the messages of the Python system hold
// its repr, and clients compare them.

// pyRepr writes v as Python's repr does.
func pyRepr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return pyString(v)
	case json.Number:
		return pyNumber(string(v))
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = pyRepr(x)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, pyString(k)+": "+pyRepr(v[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return fmt.Sprint(v)
	}
}

func pyString(s string) string {
	quote := '\''
	if strings.ContainsRune(s, '\'') && !strings.ContainsRune(s, '"') {
		quote = '"'
	}
	var b strings.Builder
	b.WriteRune(quote)
	for _, r := range s {
		switch {
		case r == quote || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r) && r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r) && r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteRune(quote)
	return b.String()
}

// pyNumber: integers as they are, floats in the shortest form that reads back,
// with an exponent from 1e16 on and below 1e-4.
func pyNumber(n string) string {
	if !strings.ContainsAny(n, ".eE") {
		return n
	}
	x, err := strconv.ParseFloat(n, 64)
	switch {
	case err != nil && math.IsInf(x, 1):
		return "inf"
	case err != nil && math.IsInf(x, -1):
		return "-inf"
	case err != nil:
		return n
	}
	if a := math.Abs(x); x != 0 && (a >= 1e16 || a < 1e-4) {
		return strconv.FormatFloat(x, 'e', -1, 64)
	}
	s := strconv.FormatFloat(x, 'f', -1, 64)
	if !strings.ContainsRune(s, '.') {
		s += ".0"
	}
	return s
}

// pyEqual is Python's ==: 1 == 1.0 == True.
func pyEqual(a, b any) bool {
	if x, ok := pyNumeric(a); ok {
		y, ok := pyNumeric(b)
		return ok && x == y
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case string:
		s, ok := b.(string)
		return ok && s == a
	case []any:
		l, ok := b.([]any)
		return ok && slices.EqualFunc(a, l, pyEqual)
	case map[string]any:
		m, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, m, pyEqual)
	default:
		return false
	}
}

func pyNumeric(v any) (float64, bool) {
	if b, ok := v.(bool); ok {
		if b {
			return 1, true
		}
		return 0, true
	}
	return number(v)
}

// compilePython compiles a pattern of Python's re module as re.match applies
// it: anchored at the start only. Look-around and back-references cannot be had.
func compilePython(pattern string) (*regexp.Regexp, error) {
	return regexp.Compile(`\A(?:` + translatePattern(pattern) + `)`)
}

var multilineFlag = regexp.MustCompile(`^\(\?[a-zA-Z]*m[a-zA-Z]*\)`)

// translatePattern rewrites what the two dialects spell differently: \Z, \uXXXX
// and $, which in Python also matches before a final newline.
func translatePattern(p string) string {
	var b strings.Builder
	inClass := false
	multiline := multilineFlag.MatchString(p)
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c == '\\' && i+1 < len(p):
			i++
			switch {
			case p[i] == 'Z' && !inClass:
				b.WriteString(`\z`)
			case p[i] == 'u' && i+4 < len(p):
				b.WriteString(`\x{` + p[i+1:i+5] + `}`)
				i += 4
			default:
				b.WriteString(p[i-1 : i+1])
			}
		case c == '[' && !inClass:
			inClass = true
			b.WriteByte(c)
			// A ] directly after [ or [^ stands for itself.
			if i+1 < len(p) && p[i+1] == '^' {
				i++
				b.WriteByte('^')
			}
			if i+1 < len(p) && p[i+1] == ']' {
				i++
				b.WriteString(`\]`)
			}
		case c == '[' && inClass:
			b.WriteString(`\[`) // [: begins a named class in Go only
		case c == ']' && inClass:
			inClass = false
			b.WriteByte(c)
		case c == '$' && !inClass && !multiline:
			b.WriteString(`(?:\n?\z)`)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
