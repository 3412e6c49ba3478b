package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Key describes one leaf of Config.
type Key struct {
	Name   string // "jobs.retention.age"
	Env    string // "CJMD_JOBS_RETENTION_AGE"
	Doc    string
	Reload bool // SIGHUP applies a change; otherwise a restart is needed
	typ    reflect.Type
	index  []int // field path inside Config
}

// Kind names the kind of value in the words of the reference page.
func (k Key) Kind() string {
	switch {
	case k.typ == durationType:
		return "a duration"
	case k.typ.Kind() == reflect.Slice:
		return "a list"
	case k.typ.Kind() == reflect.Bool:
		return "true or false"
	case k.typ.Kind() == reflect.Int:
		return "a whole number"
	default:
		return "text"
	}
}

var durationType = reflect.TypeFor[time.Duration]()

// Keys lists every key, in the order of the struct.
func Keys() []Key { return keysOf(reflect.TypeFor[Config](), "", nil) }

func keysOf(t reflect.Type, prefix string, index []int) []Key {
	var out []Key
	for f := range t.Fields() {
		name := f.Tag.Get("koanf")
		if name == "" {
			continue
		}
		path := append(append([]int{}, index...), f.Index...)
		if f.Type.Kind() == reflect.Struct {
			out = append(out, keysOf(f.Type, prefix+name+".", path)...)
			continue
		}
		out = append(out, Key{
			Name:   prefix + name,
			Env:    "CJMD_" + strings.ToUpper(strings.ReplaceAll(prefix+name, ".", "_")),
			Doc:    f.Tag.Get("doc"),
			Reload: f.Tag.Get("reload") == "yes",
			typ:    f.Type,
			index:  path,
		})
	}
	return out
}

// value returns the key's field of c.
func (k Key) value(c *Config) any { return reflect.ValueOf(c).Elem().FieldByIndex(k.index).Interface() }

// parse turns the text of an environment variable, flag or YAML scalar into
// the key's type. Lists are separated by commas.
func (k Key) parse(text string) (any, error) {
	switch {
	case k.typ == durationType:
		return ParseDuration(text)
	case k.typ.Kind() == reflect.Slice:
		list := []string{}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		return list, nil
	case k.typ.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", text)
		}
		return b, nil
	case k.typ.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		return n, nil
	default:
		return text, nil
	}
}

// ParseDuration reads Go's durations and, besides, a leading whole number of
// days ("30d", "1d12h"). Negative ones are refused: no key has a use for them.
func ParseDuration(text string) (time.Duration, error) {
	rest, total := text, time.Duration(0)
	if days, after, ok := strings.Cut(text, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 36_500 {
			return 0, fmt.Errorf("%q is not a duration; write it like 30s, 5m, 12h or 30d", text)
		}
		total, rest = time.Duration(n)*24*time.Hour, after
		if rest == "" {
			return total, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || total+d < 0 {
		return 0, fmt.Errorf("%q is not a duration; write it like 30s, 5m, 12h or 30d", text)
	}
	return total + d, nil
}

// FormatDuration writes d so that ParseDuration reads it back, in days and
// without the idle zeros of time.Duration ("5m", not "5m0s").
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	out := ""
	if days := d / (24 * time.Hour); days > 0 {
		out, d = fmt.Sprintf("%dd", days), d%(24*time.Hour)
		if d == 0 {
			return out
		}
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return out + s
}
