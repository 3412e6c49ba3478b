package plugins

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/suggest"
)

// fields reads one object of a manifest and gathers problems. A null counts as
// absent: the Python installers write one for everything they do not know.
type fields struct {
	obj      map[string]any
	prefix   string // "" or "install."
	problems *[]ManifestProblem
	seen     []string // keys that were asked for, in order: the known ones
}

func (f *fields) fail(key, format string, args ...any) {
	*f.problems = append(*f.problems, ManifestProblem{f.prefix + key, fmt.Sprintf(format, args...)})
}

func (f *fields) get(key string) (any, bool) {
	f.seen = append(f.seen, key)
	v, ok := f.obj[key]
	return v, ok && v != nil
}

func (f *fields) text(key string) string {
	v, ok := f.get(key)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		f.fail(key, "must be text; put it in quotes")
	} else if strings.ContainsRune(s, 0) {
		f.fail(key, "holds a NUL character; delete it")
	}
	return s
}

// needText is text that must be there.
func (f *fields) needText(key, example string) string {
	s := f.text(key)
	if s == "" && !f.failed(key) {
		f.fail(key, "is missing; add it, like %q", example)
	}
	return s
}

func (f *fields) failed(key string) bool {
	return slices.ContainsFunc(*f.problems, func(p ManifestProblem) bool { return p.Key == f.prefix+key })
}

func (f *fields) boolean(key string) bool {
	v, ok := f.get(key)
	if !ok {
		return false
	}
	b, ok := v.(bool)
	if !ok {
		f.fail(key, "must be true or false")
	}
	return b
}

// number is any number from least on; 0 when absent.
func (f *fields) number(key string, least float64) float64 {
	v, ok := f.get(key)
	if !ok {
		return 0
	}
	n, isNum := v.(json.Number)
	x, err := n.Float64()
	if !isNum || err != nil {
		f.fail(key, "must be a number without quotes")
		return 0
	}
	if x < least || x > 1e15 {
		f.fail(key, "is %v; it must be %v or more", n, least)
		return 0
	}
	return x
}

func (f *fields) integer(key string, least, most int) int {
	before := len(*f.problems)
	x := f.number(key, float64(least))
	if x != math.Trunc(x) || x > float64(most) {
		f.fail(key, "must be a whole number from %d to %d", least, most)
		return 0
	}
	if len(*f.problems) > before {
		return 0
	}
	return int(x)
}

// object opens the sub-object key; ok is false when it is absent or none.
func (f *fields) object(key string) (*fields, bool) {
	v, ok := f.get(key)
	if !ok {
		return f.sub(key, nil), false
	}
	m, ok := v.(map[string]any)
	if !ok {
		f.fail(key, "must be an object with keys")
	}
	return f.sub(key, m), ok
}

func (f *fields) sub(key string, m map[string]any) *fields {
	return &fields{obj: m, prefix: f.prefix + key + ".", problems: f.problems}
}

// texts is a list of non-empty texts.
func (f *fields) texts(key string) []string {
	v, ok := f.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		f.fail(key, "must be a list of texts")
		return nil
	}
	out := make([]string, 0, len(list))
	for i, x := range list {
		s, ok := x.(string)
		if !ok || s == "" || strings.ContainsRune(s, 0) {
			f.fail(fmt.Sprintf("%s[%d]", key, i), "must be text that is not empty")
			continue
		}
		out = append(out, s)
	}
	return out
}

func (f *fields) duration(key string) time.Duration {
	v, ok := f.get(key)
	if !ok {
		return 0
	}
	s, isText := v.(string)
	d, err := time.ParseDuration(s)
	if !isText || err != nil || d <= 0 {
		f.fail(key, "must be a duration with its unit, like \"30s\" or \"5m\"")
		return 0
	}
	return d
}

func (f *fields) oneOf(key string, allowed ...string) string {
	s := f.text(key)
	if s != "" && !slices.Contains(allowed, s) {
		f.fail(key, "is %q; it must be one of %s", s, strings.Join(allowed, ", "))
	}
	return s
}

// strict refuses every key that was not asked for.
func (f *fields) strict() {
	var unknown []string
	for k := range f.obj {
		if !slices.Contains(f.seen, k) {
			unknown = append(unknown, k)
		}
	}
	slices.Sort(unknown)
	for _, k := range unknown {
		f.fail(k, "is no known key%s", suggest.DidYouMean(k, f.seen))
	}
}
