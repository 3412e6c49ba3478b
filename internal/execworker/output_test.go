package execworker

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzLines: however output is cut into reads, the lines are the same, and what is
// put together again is what came.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\nc"), false)
	f.Add([]byte("10%\r20%\r\n\n"), true)
	f.Add([]byte(""), true)
	f.Fuzz(func(t *testing.T, data []byte, returns bool) {
		l := lines{most: 1 << 20, returns: returns}
		var whole, single []string
		collect := func(to *[]string) func([]byte) error {
			return func(line []byte) error {
				*to = append(*to, string(line))
				return nil
			}
		}
		if l.each(bytes.NewReader(data), collect(&whole)) != nil || l.each(iotest.OneByteReader(bytes.NewReader(data)), collect(&single)) != nil {
			t.Fatal("an error without a cause")
		}
		if strings.Join(whole, "|") != strings.Join(single, "|") || len(whole) != len(single) {
			t.Fatalf("%q gave %q at once and %q by bytes", data, whole, single)
		}
		text := string(data)
		if returns {
			text = strings.ReplaceAll(text, "\r", "\n")
		}
		if again := strings.Join(whole, "\n"); again != strings.TrimSuffix(text, "\n") && again+"\n" != text {
			t.Fatalf("%q became %q", data, whole)
		}
	})
}

func TestLines_LongOnes(t *testing.T) {
	t.Parallel()
	in := strings.Repeat("x", 200_000) + "\nshort\n"
	var got []int
	err := lines{most: 1000, cut: true}.each(strings.NewReader(in), func(line []byte) error {
		got = append(got, len(line))
		return nil
	})
	if err != nil || len(got) != 2 || got[0] != 1000 || got[1] != 5 {
		t.Fatalf("%v %v", got, err)
	}
	var f *failure
	if err := (lines{most: 1000}).each(strings.NewReader(in), func([]byte) error { return nil }); !errors.As(err, &f) || f.category != "resource" {
		t.Fatalf("%v", err)
	}
}

func TestAmount(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"0.5": 0.5, "01:02:03.5": 3723.5, "02:00": 120, "1e2": 100} {
		if got, ok := amount(text); !ok || got != want {
			t.Errorf("%s is %v (%v)", text, got, ok)
		}
	}
	for _, text := range []string{"", "N/A", "1:x", ":"} {
		if _, ok := amount(text); ok {
			t.Errorf("%q is an amount", text)
		}
	}
}
