package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJobArgs_Words(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "talk.wav")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		words        []string
		args, kwargs string
		wantArgs     string
		wantKwargs   string
		wantErr      string
	}{
		{name: "nothing", wantArgs: `[]`, wantKwargs: `{}`},
		{name: "text", words: []string{"to be", "5", ""}, wantArgs: `["to be","5",""]`, wantKwargs: `{}`},
		{name: "json", words: []string{":=5", ":=null", `:=["a"]`}, wantArgs: `[5,null,["a"]]`, wantKwargs: `{}`},
		{name: "keys", words: []string{"a=1", "b:=1", "c=", "d.e-f=x=y"}, wantArgs: `[]`, wantKwargs: `{"a":"1","b":1,"c":"","d.e-f":"x=y"}`},
		{name: "not a key", words: []string{"https://x/?q=1", "a b=c", "1=2", "=x"}, wantArgs: `["https://x/?q=1","a b=c","1=2","=x"]`, wantKwargs: `{}`},
		{name: "paths", words: []string{"@talk.wav", "audio=@" + file}, wantArgs: `["` + file + `"]`, wantKwargs: `{"audio":"` + file + `"}`},
		{name: "at sign as text", words: []string{`:="@me"`}, wantArgs: `["@me"]`, wantKwargs: `{}`},
		{name: "big numbers stay", words: []string{"n:=12345678901234567890.5"}, wantArgs: `[]`, wantKwargs: `{"n":12345678901234567890.5}`},
		{name: "flags", args: `[1]`, kwargs: `{"a":1,"b":2}`, words: []string{"b=x"}, wantArgs: `[1]`, wantKwargs: `{"a":1,"b":"x"}`},
		{name: "stdin", kwargs: "-", wantArgs: `[]`, wantKwargs: `{"from":"stdin"}`},
		{name: "missing file", words: []string{"@nothing"}, wantErr: "no such file"},
		{name: "no file", words: []string{"a=@"}, wantErr: "names no file"},
		{name: "bad json", words: []string{"a:={"}, wantErr: "is not JSON after :="},
		{name: "two values", words: []string{"a:=1 2"}, wantErr: "there is more after the value"},
		{name: "twice", words: []string{"a=1", "a:=2"}, wantErr: `argument "a" is given twice`},
		{name: "both", args: `[]`, words: []string{"x"}, wantErr: "cannot use both --args"},
		{name: "no array", args: `{}`, wantErr: "--args takes a JSON array"},
		{name: "no object", kwargs: `[]`, wantErr: "--kwargs takes a JSON object"},
		{name: "null", kwargs: `null`, wantErr: "not null"},
		{name: "empty", kwargs: `@` + file, wantErr: "it is empty"},
		{name: "both from stdin", args: "-", kwargs: "-", wantErr: "cannot read both"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := argSource{stdin: strings.NewReader(`{"from":"stdin"}`), dir: dir}.parse(c.words, c.args, c.kwargs)
			if c.wantErr != "" {
				var usage *usageError
				if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error is %v, want a usage error with %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			args, _ := json.Marshal(got.Args)
			kwargs, _ := json.Marshal(got.Kwargs)
			if string(args) != c.wantArgs || string(kwargs) != c.wantKwargs {
				t.Errorf("got %s %s, want %s %s", args, kwargs, c.wantArgs, c.wantKwargs)
			}
		})
	}
}

// Whatever is typed, parsing never fails in another way than a usage error, and
// what it accepts can be sent.
func FuzzJobArgs(f *testing.F) {
	for _, seed := range []string{"a=b", "a:=1", ":=[1]", "@x", "=", ":=", "a:=", "ключ=значение", "a=@"} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, word string) {
		got, err := argSource{stdin: strings.NewReader(""), dir: dir}.parse([]string{word}, "", "")
		var usage *usageError
		if err != nil && !errors.As(err, &usage) {
			t.Fatalf("%q: %v", word, err)
		}
		if err == nil && len(got.Args)+len(got.Kwargs) != 1 {
			t.Fatalf("%q became %d arguments", word, len(got.Args)+len(got.Kwargs))
		}
		if _, err := json.Marshal(got); err != nil {
			t.Fatalf("%q cannot be sent: %v", word, err)
		}
	})
}
