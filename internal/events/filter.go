package events

import "strings"

// Match reports whether e is selected by f.
func (f Filter) Match(e Event) bool {
	if f.Job != "" && f.Job != e.Job {
		return false
	}
	if f.Instance != "" && f.Instance != e.Instance {
		return false
	}
	if len(f.Kinds) == 0 {
		return true
	}
	for _, k := range f.Kinds {
		if k == string(e.Kind) {
			return true
		}
		if strings.HasSuffix(k, ".") && strings.HasPrefix(string(e.Kind), k) {
			return true
		}
	}
	return false
}
