package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// argsHelp is shown by the verbs that take a job's arguments.
const argsHelp = `Arguments of the job:
  text          a positional argument, as a string
  @path         a positional argument: the absolute path of an existing file
  :=JSON        a positional argument of any JSON type (:=42, :=true, :='["a"]')
  key=text      a keyword argument, as a string
  key=@path     a keyword argument: the absolute path of an existing file
  key:=JSON     a keyword argument of any JSON type
  --args JSON, --kwargs JSON
                all positional or all keyword arguments at once; @file reads a
                file, - reads standard input. key=… adds to --kwargs.
The file itself is not sent: the plugin opens the path. --file [key=]path sends
it and gives the plugin the path of what arrived. A text that begins with @ is
written as JSON (:='"@text"').`

// jobArgs is what a job is called with.
type jobArgs struct {
	Args   []any
	Kwargs map[string]any
}

// argSource is what the words of the command line may refer to.
type argSource struct {
	stdin io.Reader
	dir   string // relative paths start here
}

// A key is a name as programming languages have it, so that text which merely
// contains "=" (a URL, a formula) stays a positional argument.
var keyedArg = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.-]*)?(:?=)`)

// parse reads a job's arguments from words, --args and --kwargs.
func (s argSource) parse(words []string, argsFlag, kwargsFlag string) (jobArgs, error) {
	out := jobArgs{Args: []any{}, Kwargs: map[string]any{}}
	if argsFlag == "-" && kwargsFlag == "-" {
		return out, usagef("cannot read both --args and --kwargs from standard input")
	}
	if argsFlag != "" {
		if err := s.decode("--args", argsFlag, &out.Args, "array"); err != nil {
			return out, err
		}
	}
	if kwargsFlag != "" {
		if err := s.decode("--kwargs", kwargsFlag, &out.Kwargs, "object"); err != nil {
			return out, err
		}
	}
	seen := map[string]bool{}
	for _, word := range words {
		key, value, err := s.word(word)
		switch {
		case err != nil:
			return out, err
		case key == "" && argsFlag != "":
			return out, usagef("cannot use both --args and the positional argument %q", word)
		case key == "":
			out.Args = append(out.Args, value)
		case seen[key]:
			return out, usagef("argument %q is given twice", key)
		default:
			seen[key] = true
			out.Kwargs[key] = value
		}
	}
	return out, nil
}

// word reads one word; key is "" for a positional argument.
func (s argSource) word(word string) (key string, value any, err error) {
	m := keyedArg.FindStringSubmatch(word)
	if m == nil || m[1] == "" && m[2] == "=" { // "=x" is text
		value, err = s.text(word, word)
		return "", value, err
	}
	key, rest := m[1], word[len(m[0]):]
	if m[2] == ":=" {
		if err := strictJSON([]byte(rest), &value); err != nil {
			return "", nil, usagef("%q is not JSON after := (%v); for a string write %s=…", word, err, keyOr(key, "key"))
		}
		return key, value, nil
	}
	value, err = s.text(word, rest)
	return key, value, err
}

func keyOr(key, other string) string {
	if key == "" {
		return other
	}
	return key
}

// text returns the string a word stands for: itself, or the absolute path of @path.
func (s argSource) text(word, text string) (string, error) {
	path, ok := strings.CutPrefix(text, "@")
	if !ok {
		return text, nil
	}
	if path == "" {
		return "", usagef("%q names no file after @", word)
	}
	abs := path
	if !filepath.IsAbs(path) {
		abs = filepath.Join(s.dir, path)
	}
	if _, err := os.Stat(abs); err != nil {
		return "", usagef("cannot use %q: %v (a text that begins with @ is written as JSON, :='\"@…\"')", word, errors.Unwrap(err))
	}
	return filepath.Clean(abs), nil
}

// decode fills to from the value of a flag: JSON, @file, or - for standard input.
func (s argSource) decode(flag, value string, to any, kind string) error {
	data := []byte(value)
	switch path, isFile := strings.CutPrefix(value, "@"); {
	case value == "-":
		read, err := io.ReadAll(s.stdin)
		if err != nil {
			return fmt.Errorf("cannot read %s from standard input: %w", flag, err)
		}
		data = read
	case isFile:
		read, err := os.ReadFile(path)
		if err != nil {
			return usagef("cannot read %s: %v", flag, err)
		}
		data = read
	}
	if err := strictJSON(data, to); err != nil {
		return usagef("%s takes a JSON %s: %v", flag, kind, err)
	}
	if trimmed := bytes.TrimSpace(data); string(trimmed) == "null" {
		return usagef("%s takes a JSON %s, not null", flag, kind)
	}
	return nil
}

// strictJSON decodes exactly one value and keeps numbers as they were written.
func strictJSON(data []byte, to any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(to); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the value")
	}
	return nil
}
