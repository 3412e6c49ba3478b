package plugins

import (
	"fmt"
	"strings"
)

// NotFoundError says that there is no such plugin or instance.
type NotFoundError struct {
	Kind    string // "plugin", "instance"
	Name    string
	Nearest string // the known name most like it, "" when none is
}

func (e *NotFoundError) Error() string {
	s := fmt.Sprintf("there is no %s %q", e.Kind, e.Name)
	if e.Nearest != "" {
		s += fmt.Sprintf(" (did you mean %q?)", e.Nearest)
	}
	return s
}

// ExistsError says that an instance id is taken.
type ExistsError struct{ ID string }

func (e *ExistsError) Error() string { return fmt.Sprintf("there is an instance %q already", e.ID) }

// NameError says that an id cannot be one.
type NameError struct{ Name string }

func (e *NameError) Error() string {
	return fmt.Sprintf("%q cannot be a name: use 1 to 64 of A-Z a-z 0-9 . _ - and begin with none of the dots", e.Name)
}

// ImplicitError says that an instance cannot be deleted because it is the
// plugin's own and nothing was ever written for it.
type ImplicitError struct{ ID string }

func (e *ImplicitError) Error() string {
	return fmt.Sprintf("instance %q is the plugin's own and has no settings to delete; disable it instead", e.ID)
}

// ConfigError holds the findings that made a configuration unacceptable, and
// the warnings beside them.
type ConfigError struct {
	Instance string
	Issues   []Issue
}

func (e *ConfigError) Error() string {
	var errs []string
	for _, i := range e.Issues {
		if !i.Warning {
			errs = append(errs, i.Message)
		}
	}
	return fmt.Sprintf("cannot use this configuration for %q: %s", e.Instance, strings.Join(errs, "; "))
}

// ManifestError holds everything that is wrong with one file.
type ManifestError struct {
	Path     string
	Problems []ManifestProblem
}

// ManifestProblem is one of them. Key is dotted ("install.python_path"), ""
// when it concerns the whole file; Message says how to mend it.
type ManifestProblem struct {
	Key     string
	Message string
}

func (e *ManifestError) Error() string {
	parts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		parts[i] = p.Message
		if p.Key != "" {
			parts[i] = p.Key + " " + p.Message
		}
	}
	return fmt.Sprintf("cannot use manifest %s: %s", e.Path, strings.Join(parts, "; "))
}

// ValidName holds for plugins and instances: the name becomes part of paths,
// URLs and cgroup names.
func ValidName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// UnusableError says that a plugin's program or environment is not there, or is
// not what was installed.
type UnusableError struct {
	Plugin  string
	Finding Finding
}

func (e *UnusableError) Error() string {
	return fmt.Sprintf("cannot run plugin %q: %s; %s", e.Plugin, e.Finding.Message, e.Finding.Mend)
}
