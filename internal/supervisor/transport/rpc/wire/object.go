package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// MaxDepth is how deep the JSON of a header may be nested, the header itself
// counting as one.
const MaxDepth = 128

// Object walks the members of one JSON object without building anything:
//
//	for o := NewObject(raw); o.Next(); { switch string(o.Key) { … o.Value … } }
//
// The whole text is checked as it is walked. Key is unquoted; Value is raw JSON
// that aliases the text. A member that occurs twice is seen twice (encoding/json
// keeps the last, and so does who assigns).
type Object struct {
	Key, Value []byte

	b     []byte
	i     int
	begun bool
	err   error
}

// NewObject begins a walk over raw, which must be one object and nothing else
// but white space.
func NewObject(raw []byte) Object { return Object{b: raw} }

// Err says after the walk what was wrong with the text, nil when nothing was.
func (o *Object) Err() error { return o.err }

// Next finds the next member and says whether there is one.
func (o *Object) Next() bool {
	if o.err != nil {
		return false
	}
	more, err := o.step()
	o.err = err
	return more && err == nil
}

func (o *Object) step() (bool, error) {
	b := o.b
	i := space(b, o.i)
	if !o.begun {
		if i >= len(b) || b[i] != '{' {
			return false, syntaxError(b, i, "an object must begin here")
		}
		o.begun = true
		if i = space(b, i+1); i < len(b) && b[i] == '}' {
			return false, o.finish(i + 1)
		}
	} else {
		if i < len(b) && b[i] == '}' {
			return false, o.finish(i + 1)
		}
		if i >= len(b) || b[i] != ',' {
			return false, syntaxError(b, i, "a comma or a closing brace is missing")
		}
		i = space(b, i+1)
	}
	end, err := skipString(b, i)
	if err != nil {
		return false, err
	}
	if o.Key, err = unquoteBytes(b[i:end]); err != nil {
		return false, err
	}
	if i = space(b, end); i >= len(b) || b[i] != ':' {
		return false, syntaxError(b, i, "a colon is missing")
	}
	i = space(b, i+1)
	if end, err = skipValue(b, i, 1); err != nil {
		return false, err
	}
	o.Value, o.i = b[i:end:end], end
	return true, nil
}

func (o *Object) finish(i int) error {
	if o.i = space(o.b, i); o.i < len(o.b) {
		return syntaxError(o.b, o.i, "something follows the object")
	}
	return nil
}

// CheckValue says what is wrong with a JSON value that is to be put into a header
// below depth containers; nil when nothing is.
func CheckValue(raw []byte, depth int) error {
	if !utf8.Valid(raw) {
		return errors.New("it is no UTF-8")
	}
	end, err := skipValue(raw, space(raw, 0), depth)
	if err != nil {
		return err
	}
	if end = space(raw, end); end < len(raw) {
		return syntaxError(raw, end, "something follows the value")
	}
	return nil
}

// depthError is told apart because it breaks another rule.
type depthError struct{ at int }

func (e *depthError) Error() string {
	return fmt.Sprintf("nested deeper than %d levels at byte %d", MaxDepth, e.at)
}

func syntaxError(b []byte, i int, what string) error {
	if i >= len(b) {
		return fmt.Errorf("%s, but the text ends after %d bytes", what, len(b))
	}
	return fmt.Errorf("%s, but byte %d is %q", what, i, b[i])
}

func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the end of the value at b[i], inside depth containers.
func skipValue(b []byte, i, depth int) (int, error) {
	if i >= len(b) {
		return i, syntaxError(b, i, "a value is missing")
	}
	switch c := b[i]; {
	case c == '"':
		return skipString(b, i)
	case c == '{' || c == '[':
		return skipContainer(b, i, depth+1)
	case c == '-' || (c >= '0' && c <= '9'):
		return skipNumber(b, i)
	case c == 't':
		return skipWord(b, i, "true")
	case c == 'f':
		return skipWord(b, i, "false")
	case c == 'n':
		return skipWord(b, i, "null")
	}
	return i, syntaxError(b, i, "a value is missing")
}

// skipContainer returns the end of the object or array at b[i].
func skipContainer(b []byte, i, depth int) (int, error) {
	if depth > MaxDepth {
		return i, &depthError{at: i}
	}
	isObject, closing := b[i] == '{', byte(']')
	if isObject {
		closing = '}'
	}
	i = space(b, i+1)
	if i < len(b) && b[i] == closing {
		return i + 1, nil
	}
	var err error
	for {
		if isObject {
			if i, err = skipString(b, i); err != nil {
				return i, err
			}
			if i = space(b, i); i >= len(b) || b[i] != ':' {
				return i, syntaxError(b, i, "a colon is missing")
			}
			i = space(b, i+1)
		}
		if i, err = skipValue(b, i, depth); err != nil {
			return i, err
		}
		i = space(b, i)
		switch {
		case i < len(b) && b[i] == closing:
			return i + 1, nil
		case i < len(b) && b[i] == ',':
			i = space(b, i+1)
		default:
			return i, syntaxError(b, i, "a comma or a closing bracket is missing")
		}
	}
}

func skipWord(b []byte, i int, word string) (int, error) {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return i, syntaxError(b, i, word+" is misspelled")
	}
	return i + len(word), nil
}

func skipString(b []byte, i int) (int, error) {
	if i >= len(b) || b[i] != '"' {
		return i, syntaxError(b, i, "a string must begin here")
	}
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1, nil
		case c < 0x20:
			return i, syntaxError(b, i, "a string holds a control character")
		case c == '\\':
			n, err := escapeLen(b, i)
			if err != nil {
				return i, err
			}
			i += n - 1
		}
	}
	return i, syntaxError(b, i, "a string is not closed")
}

// escapeLen is the length of the escape sequence at b[i].
func escapeLen(b []byte, i int) (int, error) {
	if i+1 >= len(b) {
		return 0, syntaxError(b, i+1, "a string is not closed")
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, nil
	case 'u':
		for k := i + 2; k < i+6; k++ {
			if k >= len(b) || !isHex(b[k]) {
				return 0, syntaxError(b, k, "four hexadecimal digits are missing")
			}
		}
		return 6, nil
	}
	return 0, syntaxError(b, i+1, "an escape is unknown")
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func skipNumber(b []byte, i int) (int, error) {
	if b[i] == '-' {
		i++
	}
	var err error
	if i < len(b) && b[i] == '0' {
		i++
	} else if i, err = skipDigits(b, i); err != nil {
		return i, err
	}
	if i < len(b) && b[i] == '.' {
		if i, err = skipDigits(b, i+1); err != nil {
			return i, err
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return skipDigits(b, i)
	}
	return i, nil
}

func skipDigits(b []byte, i int) (int, error) {
	from := i
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	if i == from {
		return i, syntaxError(b, i, "a digit is missing")
	}
	return i, nil
}

// unquoteBytes is the text of a checked JSON string; it aliases q where q holds
// no escape.
func unquoteBytes(q []byte) ([]byte, error) {
	in := q[1 : len(q)-1]
	for _, c := range in {
		if c == '\\' {
			var s string
			if err := json.Unmarshal(q, &s); err != nil {
				return nil, err
			}
			return []byte(s), nil
		}
	}
	return in, nil
}

// IsNull says whether a raw value is null or absent.
func IsNull(raw []byte) bool { return len(raw) == 0 || string(raw) == "null" }

// IsObject says whether a checked raw value is an object.
func IsObject(raw []byte) bool { return len(raw) > 0 && raw[0] == '{' }

// Text reads a checked raw string; ok is false when it is none.
func Text(raw []byte) (s []byte, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return nil, false
	}
	s, err := unquoteBytes(raw)
	return s, err == nil
}

// Texts reads a checked raw array of strings.
func Texts(raw []byte) ([]string, bool) {
	var list []string
	err := json.Unmarshal(raw, &list)
	return list, err == nil
}

// Int reads a checked raw number that is an integer.
func Int(raw []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	return n, err == nil
}

// Float reads a checked raw number.
func Float(raw []byte) (float64, bool) {
	if len(raw) == 0 || raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	return f, err == nil
}

// Bool reads a checked raw boolean.
func Bool(raw []byte) (value, ok bool) {
	return string(raw) == "true", string(raw) == "true" || string(raw) == "false"
}

// AppendString appends s as a JSON string. What is no UTF-8 becomes U+FFFD.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[from:i]...), "\uFFFD"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c < 0x20 || c == '"' || c == '\\' {
			dst = append(dst, s[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			from = i + 1
		}
		i++
	}
	return append(append(dst, s[from:]...), '"')
}
