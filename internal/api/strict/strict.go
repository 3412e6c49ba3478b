// Package strict reads a JSON document once and accepts exactly what RFC 8259
// allows. It refuses what encoding/json lets through in silence: duplicate keys,
// trailing data, invalid UTF-8, nesting beyond a bound. It builds the tree that a
// schema is checked against and leaves payloads (args, kwargs, config) as they
// are: those are looked at for well-formedness and never built. Pure; safe from
// any goroutine. Start with Scan.
package strict

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Code is what kind of mistake was found.
type Code string

// The codes.
const (
	Invalid      Code = "invalid_json"
	DuplicateKey Code = "duplicate_key"
	TooDeep      Code = "too_deep"
)

// Error says why a document is not accepted. Pointer is where in the
// document; nothing of a value is repeated.
type Error struct {
	Code    Code
	Pointer string
	Offset  int
	Reason  string
}

func (e *Error) Error() string { return e.Reason }

// Shape says which parts of a document are payload.
type Shape struct {
	Payload bool
	Fields  map[string]*Shape
	Items   *Shape
}

type scanner struct {
	data  []byte
	pos   int
	depth int
	max   int
	path  []pathStep
}

// pathStep is an index when idx ≥ 0, else a key.
type pathStep struct {
	key []byte
	idx int
}

// Scan checks data and returns the tree of what is no payload: the types
// of encoding/json's any, with json.Number for numbers. A payload is represented
// by an empty value of its kind.
func Scan(data []byte, sh *Shape, maxDepth int) (any, error) {
	s := &scanner{data: data, max: maxDepth}
	if !utf8.Valid(data) {
		return nil, s.fail("the document is not valid UTF-8")
	}
	s.space()
	v, err := s.value(sh, true)
	if err != nil {
		return nil, err
	}
	s.space()
	if s.pos < len(s.data) {
		return nil, s.fail("there is data after the end of the JSON value")
	}
	return v, nil
}

func (s *scanner) fail(format string, args ...any) error {
	return s.failCode(Invalid, format, args...)
}

func (s *scanner) failCode(code Code, format string, args ...any) error {
	return &Error{Code: code, Pointer: s.pointer(), Offset: s.pos, Reason: fmt.Sprintf(format, args...)}
}

func (s *scanner) pointer() string {
	var out []byte
	for _, p := range s.path {
		out = append(out, '/')
		if p.idx >= 0 {
			out = strconv.AppendInt(out, int64(p.idx), 10)
			continue
		}
		out = append(out, EscapePointer(string(p.key))...)
	}
	return string(out)
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// value reads one value. build is false inside a payload.
func (s *scanner) value(sh *Shape, build bool) (any, error) {
	if s.pos >= len(s.data) {
		return nil, s.fail("the JSON ends too early")
	}
	inside := build && (sh == nil || !sh.Payload)
	switch c := s.data[s.pos]; {
	case c == '{':
		m, err := s.object(sh, inside)
		if m == nil && build && err == nil {
			m = map[string]any{}
		}
		return m, err
	case c == '[':
		a, err := s.array(sh, inside)
		if a == nil && build && err == nil {
			a = []any{}
		}
		return a, err
	case c == '"':
		return s.str(build)
	case c == '-' || c >= '0' && c <= '9':
		return s.number(build)
	case c == 't':
		return true, s.word("true")
	case c == 'f':
		return false, s.word("false")
	case c == 'n':
		return nil, s.word("null")
	default:
		return nil, s.fail("a JSON value was expected at byte %d", s.pos)
	}
}

func (s *scanner) enter() error {
	s.depth++
	if s.depth > s.max {
		// The path of a hostile document would be as long as it is deep.
		s.path = s.path[:min(len(s.path), 4)]
		return s.failCode(TooDeep, "the JSON is nested deeper than %d levels", s.max)
	}
	s.pos++
	s.space()
	return nil
}

func (s *scanner) object(sh *Shape, build bool) (map[string]any, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer func() { s.depth-- }()
	var out map[string]any
	if build {
		out = make(map[string]any, 8)
	}
	if s.peek() == '}' {
		s.pos++
		return out, nil
	}
	var seen keySet
	for {
		if s.peek() != '"' {
			return nil, s.fail("a key in double quotes was expected at byte %d", s.pos)
		}
		key, escaped, err := s.rawString()
		if err != nil {
			return nil, err
		}
		if escaped {
			key = []byte(unescape(key))
		}
		if !seen.add(key) {
			s.path = append(s.path, pathStep{key: key, idx: -1})
			return nil, s.failCode(DuplicateKey, "the key appears twice in one object")
		}
		s.space()
		if s.peek() != ':' {
			return nil, s.fail("a colon was expected at byte %d", s.pos)
		}
		s.pos++
		s.space()
		s.path = append(s.path, pathStep{key: key, idx: -1})
		var sub *Shape
		if sh != nil {
			sub = sh.Fields[string(key)]
		}
		v, err := s.value(sub, build)
		if err != nil {
			return nil, err
		}
		s.path = s.path[:len(s.path)-1]
		if build {
			out[string(key)] = v
		}
		more, err := s.next('}')
		if err != nil || !more {
			return out, err
		}
	}
}

func (s *scanner) array(sh *Shape, build bool) ([]any, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer func() { s.depth-- }()
	var out []any
	if s.peek() == ']' {
		s.pos++
		return out, nil
	}
	var sub *Shape
	if sh != nil {
		sub = sh.Items
	}
	for i := 0; ; i++ {
		s.path = append(s.path, pathStep{idx: i})
		v, err := s.value(sub, build)
		if err != nil {
			return nil, err
		}
		s.path = s.path[:len(s.path)-1]
		if build {
			out = append(out, v)
		}
		more, err := s.next(']')
		if err != nil || !more {
			return out, err
		}
	}
}

// next reads the comma or the end that follows an element.
func (s *scanner) next(end byte) (more bool, err error) {
	s.space()
	switch s.peek() {
	case ',':
		s.pos++
		s.space()
		if s.peek() == end {
			return false, s.fail("there is a comma before the end of a list at byte %d", s.pos)
		}
		return true, nil
	case end:
		s.pos++
		return false, nil
	case 0:
		if s.pos >= len(s.data) {
			return false, s.fail("the JSON ends too early")
		}
	}
	return false, s.fail("a comma or the end of a list was expected at byte %d", s.pos)
}

// peek returns the byte at hand, 0 at the end.
func (s *scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

func (s *scanner) word(w string) error {
	if len(s.data)-s.pos < len(w) || string(s.data[s.pos:s.pos+len(w)]) != w {
		return s.fail("a JSON value was expected at byte %d", s.pos)
	}
	s.pos += len(w)
	return nil
}

func (s *scanner) number(build bool) (any, error) {
	start := s.pos
	if s.peek() == '-' {
		s.pos++
	}
	switch c := s.peek(); {
	case c == '0':
		s.pos++
	case c >= '1' && c <= '9':
		s.digits()
	default:
		return nil, s.fail("a digit was expected at byte %d", s.pos)
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return nil, s.fail("a digit was expected at byte %d", s.pos)
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		exp := s.pos
		if !s.digits() {
			return nil, s.fail("a digit was expected at byte %d", s.pos)
		}
		if build && s.pos-exp > 3 { // exact arithmetic on 1e999999999 would take all memory
			return nil, s.fail("the exponent of a number is out of range at byte %d", exp)
		}
	}
	if !build {
		return nil, nil
	}
	return json.Number(s.data[start:s.pos]), nil
}

func (s *scanner) digits() bool {
	start := s.pos
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.pos++
	}
	return s.pos > start
}

func (s *scanner) str(build bool) (any, error) {
	if build {
		return s.text()
	}
	_, _, err := s.rawString()
	return nil, err
}

// text reads a string and decodes it.
func (s *scanner) text() (string, error) {
	raw, escaped, err := s.rawString()
	if err != nil || !escaped {
		return string(raw), err
	}
	return unescape(raw), nil
}

// rawString reads a string and returns what stands between the quotes.
func (s *scanner) rawString() (raw []byte, escaped bool, err error) {
	s.pos++
	start := s.pos
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; {
		case c == '"':
			raw = s.data[start:s.pos]
			s.pos++
			return raw, escaped, nil
		case c == '\\':
			escaped = true
			if err := s.escape(); err != nil {
				return nil, false, err
			}
		case c < 0x20:
			return nil, false, s.fail("there is a control character in a string at byte %d", s.pos)
		default:
			s.pos++
		}
	}
	return nil, false, s.fail("the JSON ends too early")
}

func (s *scanner) escape() error {
	s.pos++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos++
		return nil
	case 'u':
		s.pos++
		for range 4 {
			if !isHex(s.peek()) {
				return s.fail("four hexadecimal digits were expected at byte %d", s.pos)
			}
			s.pos++
		}
		return nil
	}
	return s.fail("there is an unknown escape in a string at byte %d", s.pos)
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// unescape decodes the escapes of a string that was checked before.
func unescape(raw []byte) string {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hex4(raw[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				if i+6 < len(raw) && raw[i+1] == '\\' && raw[i+2] == 'u' {
					if pair := utf16.DecodeRune(r, hex4(raw[i+3:])); pair != utf8.RuneError {
						out = utf8.AppendRune(out, pair)
						i += 6
						continue
					}
				}
				r = utf8.RuneError
			}
			out = utf8.AppendRune(out, r)
		default: // '"', '\\', '/'
			out = append(out, raw[i])
		}
	}
	return string(out)
}

func hex4(b []byte) rune {
	n, _ := strconv.ParseUint(string(b[:4]), 16, 32) // digits were checked
	return rune(n)
}

// keySet finds duplicate keys; small objects need no map.
type keySet struct {
	few  [16][]byte
	n    int
	many map[string]struct{}
}

// add reports false when key was added before. It keeps key.
func (k *keySet) add(key []byte) bool {
	if k.many == nil {
		for _, have := range k.few[:k.n] {
			if bytes.Equal(have, key) {
				return false
			}
		}
		if k.n < len(k.few) {
			k.few[k.n] = key
			k.n++
			return true
		}
		k.many = make(map[string]struct{}, 64)
		for _, have := range k.few {
			k.many[string(have)] = struct{}{}
		}
	}
	if _, ok := k.many[string(key)]; ok {
		return false
	}
	k.many[string(key)] = struct{}{}
	return true
}

// EscapePointer makes key one reference token of a JSON Pointer (RFC 6901).
func EscapePointer(key string) string {
	out := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		switch key[i] {
		case '~':
			out = append(out, "~0"...)
		case '/':
			out = append(out, "~1"...)
		default:
			out = append(out, key[i])
		}
	}
	return string(out)
}
