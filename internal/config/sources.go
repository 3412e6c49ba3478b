package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"
)

// Source is one key with its value and where that came from.
type Source struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Origin string `json:"origin"` // "default", "cjmd.yaml:7", "environment CJMD_…", "flag --…", "follows state_dir"
}

// Sources lists every key in the order of Keys, for `cjmd config show`.
func (c *Config) Sources() []Source {
	keys := Keys()
	out := make([]Source, 0, len(keys))
	for _, k := range keys {
		origin := c.origins[k.Name]
		if origin == "" {
			origin = "default"
		}
		out = append(out, Source{Key: k.Name, Value: shown(k.Name, k.value(c)), Origin: origin})
	}
	return out
}

// secretName matches keys whose value must not be shown. No key is one today
// (tokens and plugin secrets have files of their own); it guards the next.
var secretName = regexp.MustCompile(`(^|[._])(token|secret|password|passphrase)s?$`)

func shown(key string, v any) string {
	if secretName.MatchString(key) && !reflect.ValueOf(v).IsZero() {
		return "(set, not shown)"
	}
	return format(v)
}

// format writes a value as the YAML file and the environment would.
func format(v any) string {
	switch v := v.(type) {
	case time.Duration:
		return FormatDuration(v)
	case []string:
		return strings.Join(v, ",")
	default:
		return fmt.Sprint(v)
	}
}

// Diff compares two configurations for SIGHUP: the keys whose change can be
// applied at once, and those that wait for a restart.
func Diff(was, now *Config) (apply, restart []string) {
	for _, k := range Keys() {
		if reflect.DeepEqual(k.value(was), k.value(now)) {
			continue
		}
		if k.Reload {
			apply = append(apply, k.Name)
		} else {
			restart = append(restart, k.Name)
		}
	}
	return apply, restart
}
