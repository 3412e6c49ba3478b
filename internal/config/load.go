package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/cjmd/cjmd/internal/suggest"
)

// Options says what to read. The zero value reads nothing but the default file.
type Options struct {
	File  string         // explicit file; else --config, CJMD_CONFIG, <config dir>/cjmd.yaml when it exists
	Env   []string       // KEY=value, as os.Environ
	Flags *pflag.FlagSet // made by AddFlags, parsed; nil: no flags
	UID   func() int     // nil: os.Getuid
}

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Key     string // "" when it concerns the whole
	Origin  string // "cjmd.yaml:7", "environment CJMD_LISTEN", "flag --listen"; "" for defaults
	Message string
}

func (p Problem) String() string {
	s := p.Message
	if p.Key != "" {
		s = p.Key + ": " + s
	}
	if p.Origin != "" {
		s += " [" + p.Origin + "]"
	}
	return s
}

// Error holds every problem of a configuration.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	if len(lines) == 1 {
		return "cannot use the configuration: " + lines[0]
	}
	return fmt.Sprintf("cannot use the configuration, %d problems:\n  %s", len(lines), strings.Join(lines, "\n  "))
}

// flagKeys joins the flags of AddFlags to their keys.
var flagKeys = []struct{ flag, key, usage string }{
	{"state-dir", "state_dir", "directory for jobs, journal and everything else that must last"},
	{"listen", "server.listen", "TCP address of the API, or none"},
	{"socket", "server.socket", "path of the API's Unix socket, or none"},
	{"log-level", "log.level", "debug, info, warn or error"},
	{"log-format", "log.format", "json, console or auto"},
	{"policy", "scheduler.policy", "reserve, permissive, safety or queue"},
	{"monitor", "monitor.name", "system monitor that gates admission, or none"},
	{"plugins", "plugins.paths", "directories with manifests, separated by commas"},
}

// AddFlags adds --config and the flags of the main keys. Their defaults are
// empty here: a flag that is not given changes nothing.
func AddFlags(fs *pflag.FlagSet) {
	fs.String("config", "", "configuration file (YAML)")
	for _, f := range flagKeys {
		fs.String(f.flag, "", f.usage)
	}
}

// foreignEnv are CJMD_ variables that are no configuration of the daemon:
// the file's path, and what cjm-ctl reads to find a daemon.
var foreignEnv = map[string]bool{
	"CJMD_CONFIG": true, "CJMD_HOST": true, "CJMD_TOKEN": true, "CJMD_TOKEN_FILE": true, "CJMD_SOCKET": true, "CJMD_URL": true, "CJMD_ADDR": true,
}

// Load reads, merges and validates. A *Error holds all problems.
func Load(o Options) (*Config, error) {
	getenv := lookupIn(o.Env)
	uid := o.UID
	if uid == nil {
		uid = os.Getuid
	}
	dirs, err := DefaultDirs(getenv, uid())
	if err != nil {
		return nil, err
	}
	path, explicit := o.file(getenv, dirs)
	l := newLoader()
	if err := l.readFile(path, explicit); err != nil {
		return nil, err
	}
	if err := l.readEnv(o.Env); err != nil {
		return nil, err
	}
	if err := l.readFlags(o.Flags); err != nil {
		return nil, err
	}
	c, err := l.finish(Defaults(dirs))
	if err != nil {
		return nil, err
	}
	// What could not be read has its default in c: the rest is checked all the
	// same, so that everything that is wrong is told at once.
	problems := l.problems
	if invalid := (*Error)(nil); errors.As(c.Validate(), &invalid) {
		problems = append(problems, invalid.Problems...)
	}
	if len(problems) > 0 {
		return nil, &Error{problems}
	}
	return c, nil
}

// file says which file to read and whether it must exist.
func (o Options) file(getenv func(string) string, dirs Dirs) (path string, explicit bool) {
	if o.File != "" {
		return o.File, true
	}
	if o.Flags != nil {
		if f := o.Flags.Lookup("config"); f != nil && f.Changed {
			return f.Value.String(), true
		}
	}
	if p := getenv("CJMD_CONFIG"); p != "" {
		return p, true
	}
	return filepath.Join(dirs.Config, "cjmd.yaml"), false
}

// loader gathers the layers. Every value in k is already of its key's type.
type loader struct {
	k        *koanf.Koanf
	keys     map[string]Key
	names    []string
	origins  map[string]string
	problems []Problem
	file     string
}

func newLoader() *loader {
	l := &loader{k: koanf.New("."), keys: map[string]Key{}, origins: map[string]string{}}
	for _, key := range Keys() {
		l.keys[key.Name] = key
		l.names = append(l.names, key.Name)
	}
	return l
}

func (l *loader) problem(key, origin, format string, args ...any) {
	l.problems = append(l.problems, Problem{key, origin, fmt.Sprintf(format, args...)})
}

func (l *loader) readFile(path string, explicit bool) error {
	p := file.Provider(path)
	parser := &strictYAML{loader: l, path: path}
	err := l.k.Load(p, parser)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !explicit:
		return nil
	case err != nil:
		return fmt.Errorf("cannot read the configuration file %s: %w", path, err)
	}
	l.file = path
	return nil
}

func (l *loader) readEnv(environ []string) error {
	byEnv := make(map[string]Key, len(l.keys))
	var known []string
	for _, key := range l.keys {
		byEnv[key.Env] = key
		known = append(known, key.Env)
	}
	sort.Strings(known)
	return l.k.Load(env.Provider(".", env.Opt{
		Prefix:      "CJMD_",
		EnvironFunc: func() []string { return append([]string{}, environ...) },
		TransformFunc: func(name, text string) (string, any) {
			if foreignEnv[name] {
				return "", nil
			}
			origin := "environment " + name
			key, ok := byEnv[name]
			if !ok {
				// The value is not repeated: it may be a secret under a mistyped name.
				l.problem("", origin, "%s is no setting%s", name, suggest.DidYouMean(name, known))
				return "", nil
			}
			return l.take(key, text, origin)
		},
	}), nil)
}

func (l *loader) readFlags(flags *pflag.FlagSet) error {
	if flags == nil {
		return nil
	}
	return l.k.Load(posflag.ProviderWithFlag(flags, ".", nil, func(f *pflag.Flag) (string, any) {
		if !f.Changed {
			return "", nil
		}
		for _, fk := range flagKeys {
			if fk.flag == f.Name {
				return l.take(l.keys[fk.key], f.Value.String(), "flag --"+f.Name)
			}
		}
		return "", nil // another command's flag in the same set
	}), nil)
}

// take parses text for key and notes where it came from; key "" means refused.
func (l *loader) take(key Key, text, origin string) (string, any) {
	v, err := key.parse(text)
	if err != nil {
		l.problem(key.Name, origin, "%v", err)
		return "", nil
	}
	l.origins[key.Name] = origin
	return key.Name, v
}

// finish puts the layers over the defaults and decodes them, strictly once more.
func (l *loader) finish(defaults Config) (*Config, error) {
	merged := koanf.New(".")
	base := make(map[string]any, len(l.keys))
	for name, key := range l.keys {
		base[name] = key.value(&defaults)
	}
	if err := merged.Load(confmap.Provider(base, "."), nil); err != nil {
		return nil, fmt.Errorf("cannot load the defaults: %w", err)
	}
	if err := merged.Merge(l.k); err != nil {
		return nil, fmt.Errorf("cannot merge the configuration: %w", err)
	}
	c := &Config{origins: l.origins, file: l.file}
	err := merged.UnmarshalWithConf("", c, koanf.UnmarshalConf{
		Tag: "koanf",
		DecoderConfig: &mapstructure.DecoderConfig{
			TagName: "koanf", ErrorUnused: true,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot decode the configuration: %w", err)
	}
	c.derive()
	return c, nil
}

// derive fills what follows from other keys. A daemon that was only given
// another state directory is a second daemon: it must not share the first
// one's socket or logs.
func (c *Config) derive() {
	if c.origins["state_dir"] != "" {
		for _, d := range []struct {
			key, sub string
			field    *string
		}{{"log_dir", "log", &c.LogDir}, {"run_dir", "run", &c.RunDir}, {"cache_dir", "cache", &c.CacheDir}} {
			if c.origins[d.key] == "" {
				*d.field = filepath.Join(c.StateDir, d.sub)
				c.origins[d.key] = "follows state_dir"
			}
		}
	}
	for _, d := range []struct {
		key, from, value string
		field            *string
	}{
		{"server.socket", "run_dir", filepath.Join(c.RunDir, "cjmd.sock"), &c.Server.Socket},
		{"plugins.data_dir", "state_dir", filepath.Join(c.StateDir, "data"), &c.Plugins.DataDir},
		{"plugins.models_dir", "state_dir", filepath.Join(c.StateDir, "models"), &c.Plugins.ModelsDir},
	} {
		if *d.field == "" {
			*d.field = d.value
			c.origins[d.key] = "follows " + d.from
		}
	}
}

// lookupIn is os.Getenv over a given environment; the last entry of a name wins.
func lookupIn(environ []string) func(string) string {
	m := make(map[string]string, len(environ))
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	return func(k string) string { return m[k] }
}
