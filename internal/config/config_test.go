package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// load reads yaml text, environment and arguments as a user without a file of their own.
func load(t *testing.T, yaml string, env []string, args ...string) (*Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("cjmd", pflag.ContinueOnError)
	AddFlags(fs)
	require.NoError(t, fs.Parse(args))
	o := Options{Env: append([]string{"HOME=/home/of-nobody"}, env...), Flags: fs, UID: func() int { return 1000 }}
	if yaml != "" {
		o.File = filepath.Join(t.TempDir(), "cjmd.yaml")
		require.NoError(t, os.WriteFile(o.File, []byte(yaml), 0o600))
	}
	return Load(o)
}

func problems(t *testing.T, err error) []Problem {
	t.Helper()
	var ce *Error
	require.ErrorAs(t, err, &ce)
	return ce.Problems
}

func source(c *Config, key string) Source {
	for _, s := range c.Sources() {
		if s.Key == key {
			return s
		}
	}
	return Source{}
}

func TestLoad_PrecedenceAndSources(t *testing.T) {
	t.Parallel()
	yaml := "log:\n  level: debug\n  format: json\nmonitor:\n  name: sim\nscheduler:\n  policy: safety\n"
	c, err := load(t, yaml, []string{"CJMD_MONITOR_NAME=nvidia", "CJMD_SCHEDULER_POLICY=queue"}, "--policy=permissive")
	require.NoError(t, err)
	require.Equal(t, "debug", c.Log.Level)
	require.Equal(t, "nvidia", c.Monitor.Name)
	require.Equal(t, "permissive", c.Scheduler.Policy)
	require.Equal(t, 3, c.Jobs.MaxAttempts)

	require.Equal(t, Source{"log.level", "debug", "cjmd.yaml:2"}, source(c, "log.level"))
	require.Equal(t, Source{"log.format", "json", "cjmd.yaml:3"}, source(c, "log.format"))
	require.Equal(t, Source{"monitor.name", "nvidia", "environment CJMD_MONITOR_NAME"}, source(c, "monitor.name"))
	require.Equal(t, Source{"scheduler.policy", "permissive", "flag --policy"}, source(c, "scheduler.policy"))
	require.Equal(t, Source{"jobs.retention.age", "30d", "default"}, source(c, "jobs.retention.age"))
	require.Len(t, c.Sources(), len(Keys()))
}

func TestLoad_EveryKindFromEveryLayer(t *testing.T) {
	t.Parallel()
	c, err := load(t, "plugins:\n  paths: [/a, /b]\n  watch: false\njobs:\n  retention: {age: 1d12h, count: 1_000}\n", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"/a", "/b"}, c.Plugins.Paths)
	require.False(t, c.Plugins.Watch)
	require.Equal(t, 36*time.Hour, c.Jobs.Retention.Age)
	require.Equal(t, 1000, c.Jobs.Retention.Count)

	c, err = load(t, "plugins:\n  paths: [/a]\n", []string{
		"CJMD_PLUGINS_PATHS=/c, /d", "CJMD_PLUGINS_WATCH=false", "CJMD_JOBS_RUN_TIMEOUT=90s", "CJMD_JOBS_MAX_ATTEMPTS=1",
	})
	require.NoError(t, err)
	require.Equal(t, []string{"/c", "/d"}, c.Plugins.Paths) // replaces, never appends
	require.False(t, c.Plugins.Watch)
	require.Equal(t, 90*time.Second, c.Jobs.RunTimeout)
	require.Equal(t, 1, c.Jobs.MaxAttempts)

	c, err = load(t, "", []string{"CJMD_PLUGINS_PATHS=/c"}, "--plugins=/e,/f", "--listen=none", "--state-dir=/s", "--log-level=warn")
	require.NoError(t, err)
	require.Equal(t, []string{"/e", "/f"}, c.Plugins.Paths)
	require.Equal(t, None, c.Server.Listen)
	require.Equal(t, "warn", c.Log.Level)
}

func TestLoad_UnknownKeysNameTheNearestAndTheirOrigin(t *testing.T) {
	t.Parallel()
	_, err := load(t, "sever:\n  listen: none\nlog:\n  lvel: debug\nlevel: debug\njobs.max_attempts: 2\n", []string{"CJMD_MONITR_NAME=s3cret"})
	require.Equal(t, []Problem{
		{"sever", "cjmd.yaml:1", `unknown key (did you mean "server"?)`},
		{"log.lvel", "cjmd.yaml:4", `unknown key (did you mean "level"?)`},
		{"level", "cjmd.yaml:5", `unknown key (did you mean "log.level"? write it as nested sections)`},
		{"jobs.max_attempts", "cjmd.yaml:6", `must be written as nested sections, not with dots`},
		{"", "environment CJMD_MONITR_NAME", `CJMD_MONITR_NAME is no setting (did you mean "CJMD_MONITOR_NAME"?)`},
	}, problems(t, err))
	require.NotContains(t, err.Error(), "s3cret")
}

func TestLoad_WrongKindsAreToldAllAtOnce(t *testing.T) {
	t.Parallel()
	yaml := `jobs:
  queue_timeout: 30
  max_attempts: "3"
  retention: 5
server:
  socket_mode: 0660
  listen:
  listen: none
plugins:
  watch: "yes"
  paths: /a
limits: [1]
autoload: [1]
joblog:
  max_mb: 1.5
`
	_, err := load(t, yaml, []string{"CJMD_JOBS_MAX_PENDING=many"})
	var got []string
	for _, p := range problems(t, err) {
		got = append(got, p.String())
	}
	require.Equal(t, []string{
		"jobs.queue_timeout: 30 has no unit; write it like 30s, 5m, 12h or 30d [cjmd.yaml:2]",
		`jobs.max_attempts: "3" must be a whole number [cjmd.yaml:3]`,
		"jobs.retention: must hold keys with values, one a line [cjmd.yaml:4]",
		"server.socket_mode: 0660 must be text; put it in quotes [cjmd.yaml:6]",
		"server.listen: has no value; give one or delete the line [cjmd.yaml:7]",
		"server.listen: is given twice, first in line 7; keep one [cjmd.yaml:8]",
		`plugins.watch: "yes" must be true or false [cjmd.yaml:10]`,
		`plugins.paths: must be a list: [a, b] or one "- item" a line [cjmd.yaml:11]`,
		"limits: must hold keys with values, one a line [cjmd.yaml:12]",
		"autoload: every item must be text; put it in quotes [cjmd.yaml:13]",
		`joblog.max_mb: "1.5" must be a whole number [cjmd.yaml:15]`,
		`jobs.max_pending: "many" is not a whole number [environment CJMD_JOBS_MAX_PENDING]`,
	}, got)
}

func TestLoad_Files(t *testing.T) {
	t.Parallel()
	t.Run("an empty file, and a section with everything commented out, are fine", func(t *testing.T) {
		t.Parallel()
		_, err := load(t, "# nothing\n", nil)
		require.NoError(t, err)
		_, err = load(t, "server:\n#  listen: none\n", nil)
		require.NoError(t, err)
	})
	t.Run("text that is no YAML names the file", func(t *testing.T) {
		t.Parallel()
		_, err := load(t, "a: [1\n", nil)
		require.ErrorContains(t, err, "cjmd.yaml: yaml: line")
	})
	t.Run("an explicit file must exist", func(t *testing.T) {
		t.Parallel()
		_, err := load(t, "", nil, "--config=/nonexistent/x.yaml")
		require.ErrorIs(t, err, os.ErrNotExist)
		_, err = load(t, "", []string{"CJMD_CONFIG=/nonexistent/y.yaml"})
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("the default file is read where it exists", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "cjmd"), 0o700))
		path := filepath.Join(dir, "cjmd", "cjmd.yaml")
		require.NoError(t, os.WriteFile(path, []byte("monitor: {name: sim}\n"), 0o600))
		c, err := load(t, "", []string{"XDG_CONFIG_HOME=" + dir})
		require.NoError(t, err)
		require.Equal(t, "sim", c.Monitor.Name)
		require.Equal(t, path, c.File())
	})
	t.Run("an unreadable file is an error", func(t *testing.T) {
		t.Parallel()
		_, err := load(t, "", nil, "--config="+t.TempDir())
		require.ErrorContains(t, err, "cannot read the configuration file")
	})
}

func TestLoad_DirectoriesFollowAnExplicitStateDir(t *testing.T) {
	t.Parallel()
	c, err := load(t, "", nil, "--state-dir=/srv/x")
	require.NoError(t, err)
	require.Equal(t, []string{"/srv/x/log", "/srv/x/run", "/srv/x/cache", "/srv/x/run/cjmd.sock", "/srv/x/data", "/srv/x/models"},
		[]string{c.LogDir, c.RunDir, c.CacheDir, c.Server.Socket, c.Plugins.DataDir, c.Plugins.ModelsDir})
	require.Equal(t, "follows state_dir", source(c, "log_dir").Origin)

	c, err = load(t, "", []string{"CJMD_RUN_DIR=/run/mine", "XDG_RUNTIME_DIR=/run/user/1000"}, "--state-dir=/srv/x")
	require.NoError(t, err)
	require.Equal(t, "/run/mine/cjmd.sock", c.Server.Socket)

	c, err = load(t, "", []string{"XDG_RUNTIME_DIR=/run/user/1000"})
	require.NoError(t, err)
	require.Equal(t, "/run/user/1000/cjmd/cjmd.sock", c.Server.Socket)
	require.True(t, strings.HasSuffix(c.LogDir, "/.local/state/cjmd/log"), c.LogDir)
}

func TestValidate_NamesKeyAndWayOut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env  []string
		want string
	}{
		"beyond loopback":        {[]string{"CJMD_SERVER_LISTEN=0.0.0.0:8765"}, "server.insecure_bind and server.insecure_bind_really"},
		"beyond loopback, once":  {[]string{"CJMD_SERVER_LISTEN=:8765", "CJMD_SERVER_INSECURE_BIND=true"}, "server.listen"},
		"no port":                {[]string{"CJMD_SERVER_LISTEN=127.0.0.1"}, "must be host:port"},
		"nobody can reach it":    {[]string{"CJMD_SERVER_LISTEN=none", "CJMD_SERVER_SOCKET=none"}, "both none"},
		"half of TLS":            {[]string{"CJMD_SERVER_TLS_CERT=/c.pem"}, "belong together"},
		"socket too long":        {[]string{"CJMD_SERVER_SOCKET=/" + strings.Repeat("x", 120)}, "choose a shorter"},
		"relative directory":     {[]string{"CJMD_STATE_DIR=here"}, `state_dir: "here" is not an absolute path`},
		"socket mode":            {[]string{"CJMD_SERVER_SOCKET_MODE=0999"}, "server.socket_mode"},
		"socket role":            {[]string{"CJMD_SERVER_SOCKET_ROLE=king"}, "server.socket_role"},
		"host with wildcard":     {[]string{"CJMD_SERVER_ALLOWED_HOSTS=*"}, "server.allowed_hosts"},
		"origin with path":       {[]string{"CJMD_SERVER_ALLOWED_ORIGINS=https://x/y"}, "server.allowed_origins"},
		"log level":              {[]string{"CJMD_LOG_LEVEL=loud"}, `log.level: "loud" is not one of debug, info, warn, error`},
		"policy of a later day":  {[]string{"CJMD_SCHEDULER_POLICY=fair"}, "reserve, permissive, safety, queue"},
		"tier":                   {[]string{"CJMD_WORKERS_ISOLATION_TIER=9"}, "workers.isolation.tier"},
		"no attempts":            {[]string{"CJMD_JOBS_MAX_ATTEMPTS=0"}, "the least is 1"},
		"cap below stall":        {[]string{"CJMD_WORKERS_START_CAP=10s"}, "workers.stall_timeout"},
		"stale by construction":  {[]string{"CJMD_MONITOR_MAX_AGE=1s"}, "always be stale"},
		"job larger than a body": {[]string{"CJMD_JOBS_MAX_BODY_MB=64"}, "limits.body_mb"},
		"busy sampling":          {[]string{"CJMD_MONITOR_INTERVAL_BUSY=1ms"}, "monitor.interval_busy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, "", tc.env)
			require.ErrorContains(t, err, tc.want)
			for _, p := range problems(t, err) {
				require.NotEmpty(t, p.Key)
			}
		})
	}
	for name, env := range map[string][]string{
		"beyond loopback with TLS":         {"CJMD_SERVER_LISTEN=0.0.0.0:8765", "CJMD_SERVER_TLS_CERT=/c", "CJMD_SERVER_TLS_KEY=/k"},
		"beyond loopback, said twice":      {"CJMD_SERVER_LISTEN=:8765", "CJMD_SERVER_INSECURE_BIND=true", "CJMD_SERVER_INSECURE_BIND_REALLY=true"},
		"IPv6 loopback":                    {"CJMD_SERVER_LISTEN=[::1]:0"},
		"the client's variables are known": {"CJMD_TOKEN=x", "CJMD_SOCKET=/y", "CJMD_URL=http://z"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, "", env)
			require.NoError(t, err)
		})
	}
}

func TestValidate_TellsAllAtOnceWithOrigins(t *testing.T) {
	t.Parallel()
	_, err := load(t, "log:\n  level: loud\njobs:\n  max_attempts: 0\n", []string{"CJMD_SCHEDULER_POLICY=fair"})
	var origins []string
	for _, p := range problems(t, err) {
		origins = append(origins, p.Origin)
	}
	require.ElementsMatch(t, []string{"cjmd.yaml:2", "cjmd.yaml:4", "environment CJMD_SCHEDULER_POLICY"}, origins)
	require.ErrorContains(t, err, "3 problems")
}

func TestDefaultDirs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env  []string
		uid  int
		want Dirs
	}{
		"root": {nil, 0, Dirs{"/var/lib/cjmd", "/var/log/cjmd", "/run/cjmd", "/var/cache/cjmd", "/etc/cjmd"}},
		"systemd": {
			[]string{"STATE_DIRECTORY=/var/lib/cjmd:/x", "LOGS_DIRECTORY=/l", "RUNTIME_DIRECTORY=/r", "CACHE_DIRECTORY=/c"}, 990,
			Dirs{"/var/lib/cjmd", "/l", "/r", "/c", "/etc/cjmd"},
		},
		"user": {
			[]string{"HOME=/h"}, 1000,
			Dirs{"/h/.local/state/cjmd", "/h/.local/state/cjmd/log", "/h/.local/state/cjmd/run", "/h/.cache/cjmd", "/h/.config/cjmd"},
		},
		"user with XDG": {
			[]string{"XDG_STATE_HOME=/s", "XDG_CACHE_HOME=/c", "XDG_CONFIG_HOME=/e", "XDG_RUNTIME_DIR=/r"}, 1000,
			Dirs{"/s/cjmd", "/s/cjmd/log", "/r/cjmd", "/c/cjmd", "/e/cjmd"},
		},
		"a relative XDG value is ignored": {
			[]string{"HOME=/h", "XDG_CACHE_HOME=c"}, 1000,
			Dirs{"/h/.local/state/cjmd", "/h/.local/state/cjmd/log", "/h/.local/state/cjmd/run", "/h/.cache/cjmd", "/h/.config/cjmd"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := DefaultDirs(lookupIn(tc.env), tc.uid)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
	_, err := DefaultDirs(lookupIn(nil), 1000)
	require.ErrorContains(t, err, "HOME")
}

func TestDurations_RoundTrip(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"0s": 0, "200ms": 200 * time.Millisecond, "1h": time.Hour, "30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute, "10m": 10 * time.Minute,
	} {
		d, err := ParseDuration(text)
		require.NoError(t, err, text)
		require.Equal(t, want, d, text)
		require.Equal(t, text, FormatDuration(d))
	}
	for _, text := range []string{"", "30", "-1s", "d", "1x", "-3d", "1d-30h", "99999999d"} {
		_, err := ParseDuration(text)
		require.Error(t, err, text)
	}
}

func TestDiff_TellsWhatARestartNeeds(t *testing.T) {
	t.Parallel()
	a, err := load(t, "", nil, "--state-dir=/s")
	require.NoError(t, err)
	b, err := load(t, "log: {level: debug}\njobs: {retention: {age: 1h}}\nserver: {listen: none}\n", nil, "--state-dir=/s")
	require.NoError(t, err)
	apply, restart := Diff(a, b)
	require.Equal(t, []string{"log.level", "jobs.retention.age"}, apply)
	require.Equal(t, []string{"server.listen"}, restart)
	apply, restart = Diff(a, a)
	require.Empty(t, append(apply, restart...))
}

func TestShown_HidesSecretLikeKeys(t *testing.T) {
	t.Parallel()
	require.Equal(t, "(set, not shown)", shown("server.token", "abc"))
	require.Equal(t, "(set, not shown)", shown("db.admin_password", "abc"))
	require.Equal(t, "", shown("server.token", ""))
	require.Equal(t, "/k.pem", shown("server.tls_key", "/k.pem"))
}

func TestKeys_EnvironmentNamesAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, k := range Keys() {
		require.Empty(t, seen[k.Env], "%s and %s share %s", k.Name, seen[k.Env], k.Env)
		require.NotEmpty(t, k.Doc, k.Name)
		require.False(t, foreignEnv[k.Env], k.Env)
		seen[k.Env] = k.Name
	}
}

func TestExample_IsCompleteAndShowsTheDefaults(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "configs", "cjmd.yaml")
	c, err := Load(Options{File: path, UID: func() int { return 0 }})
	require.NoError(t, err)
	dirs, err := DefaultDirs(lookupIn(nil), 0)
	require.NoError(t, err)
	want := Defaults(dirs)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, k := range Keys() {
		origin := source(c, k.Name).Origin
		follows := strings.HasPrefix(origin, "follows ") // given as "" in the file
		require.True(t, follows || strings.HasPrefix(origin, "cjmd.yaml:"), "%s is missing in configs/cjmd.yaml", k.Name)
		if !follows {
			require.Equal(t, k.value(&want), k.value(c), k.Name)
		}
	}
	require.Equal(t, strings.Count(string(text), "(reload)")-1, reloadable(), "every reloadable key is marked (reload)")
}

func reloadable() int {
	n := 0
	for _, k := range Keys() {
		if k.Reload {
			n++
		}
	}
	return n
}

func TestLoad_SourcesDoNotDependOnAnEarlierLoad(t *testing.T) {
	t.Parallel()
	a, err := load(t, "", nil, "--log-level=debug", "--state-dir=/s")
	require.NoError(t, err)
	b, err := load(t, "", nil, "--state-dir=/s")
	require.NoError(t, err)
	require.Equal(t, "flag --log-level", source(a, "log.level").Origin)
	require.Equal(t, "default", source(b, "log.level").Origin)
	require.False(t, reflect.DeepEqual(a, b))
	require.False(t, errors.Is(err, os.ErrNotExist))
}

// Seen: a misspelt key hid a wrong value until the key was mended.
func TestLoad_MisspeltKeyHidesNoWrongValue(t *testing.T) {
	t.Parallel()
	_, err := load(t, "log:\n  level: loud\njobs:\n  max_atempts: 3\n", nil)
	require.ErrorContains(t, err, "max_atempts")
	require.ErrorContains(t, err, "loud")
}
