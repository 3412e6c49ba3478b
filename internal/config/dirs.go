package config

import (
	"errors"
	"path/filepath"
	"strings"
)

// Dirs are the five places of the daemon.
type Dirs struct {
	State, Log, Run, Cache string
	Config                 string // holds cjmd.yaml and the plugins directory
}

// DefaultDirs says where a daemon of this user keeps its things: where systemd
// put them (STATE_DIRECTORY and its kin), else the system's directories for
// root, else the XDG directories. It only computes; nothing is made or read.
func DefaultDirs(getenv func(string) string, uid int) (Dirs, error) {
	d := Dirs{
		State:  firstOf(getenv("STATE_DIRECTORY")),
		Log:    firstOf(getenv("LOGS_DIRECTORY")),
		Run:    firstOf(getenv("RUNTIME_DIRECTORY")),
		Cache:  firstOf(getenv("CACHE_DIRECTORY")),
		Config: firstOf(getenv("CONFIGURATION_DIRECTORY")),
	}
	if uid == 0 || d.State != "" {
		d.fill(Dirs{
			State: "/var/lib/cjmd", Log: "/var/log/cjmd", Run: "/run/cjmd",
			Cache: "/var/cache/cjmd", Config: "/etc/cjmd",
		})
		return d, nil
	}
	home := getenv("HOME")
	xdg := func(name, underHome string) string {
		// The XDG specification ignores relative values.
		if v := getenv(name); filepath.IsAbs(v) {
			return filepath.Join(v, "cjmd")
		}
		if home == "" {
			return ""
		}
		return filepath.Join(home, underHome, "cjmd")
	}
	u := Dirs{
		State:  xdg("XDG_STATE_HOME", ".local/state"),
		Cache:  xdg("XDG_CACHE_HOME", ".cache"),
		Config: xdg("XDG_CONFIG_HOME", ".config"),
	}
	if u.State == "" || u.Cache == "" || u.Config == "" {
		return Dirs{}, errors.New("cannot choose directories: HOME is not set; set it, or XDG_STATE_HOME, XDG_CACHE_HOME and XDG_CONFIG_HOME")
	}
	u.Log = filepath.Join(u.State, "log")
	u.Run = filepath.Join(u.State, "run") // kept private; survives a missing login session
	if v := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(v) {
		u.Run = filepath.Join(v, "cjmd")
	}
	d.fill(u)
	return d, nil
}

// fill sets what is still empty.
func (d *Dirs) fill(from Dirs) {
	for _, f := range []struct{ to, from *string }{
		{&d.State, &from.State},
		{&d.Log, &from.Log},
		{&d.Run, &from.Run},
		{&d.Cache, &from.Cache},
		{&d.Config, &from.Config},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
}

// firstOf returns the first of systemd's colon-separated directories.
func firstOf(v string) string {
	first, _, _ := strings.Cut(v, ":")
	return first
}
