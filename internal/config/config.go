// Package config owns the daemon's configuration: its schema, defaults, where
// each value came from, and whether the whole makes sense. Precedence is
// defaults < YAML file < CJMD_* environment < flags. Decoding is strict: an
// unknown key or a value of the wrong kind is a problem, and all problems are
// told at once. Everything here is pure after Load; a Config is never changed.
// Start with Config, then Load (load.go) and Validate (validate.go).
package config

import (
	"path/filepath"
	"time"
)

// Config is the whole configuration. Every leaf carries its key (koanf), one
// sentence for the reference page (doc), and whether SIGHUP can apply a change
// (reload). Reading a field is all a caller ever does.
type Config struct {
	StateDir string `koanf:"state_dir" doc:"Jobs, journal, instances, tokens, results. One daemon per state directory."`
	LogDir   string `koanf:"log_dir" doc:"Log files of workers. Follows state_dir (<state_dir>/log) when only that is given."`
	RunDir   string `koanf:"run_dir" doc:"Socket and other run-time files. Follows state_dir (<state_dir>/run) when only that is given."`
	CacheDir string `koanf:"cache_dir" doc:"What can be made again: unpacked runtime, scratch. Follows state_dir (<state_dir>/cache) when only that is given."`

	Server    Server    `koanf:"server"`
	Log       Log       `koanf:"log"`
	Plugins   Plugins   `koanf:"plugins"`
	Jobs      Jobs      `koanf:"jobs"`
	JobLog    JobLog    `koanf:"joblog"`
	Workers   Workers   `koanf:"workers"`
	Scheduler Scheduler `koanf:"scheduler"`
	Monitor   Monitor   `koanf:"monitor"`
	Limits    Limits    `koanf:"limits"`
	Autoload  []string  `koanf:"autoload" doc:"Instances whose workers are loaded when the daemon starts."`

	origins map[string]string // key → origin, for keys that are not at their default
	file    string            // the YAML file that was read, "" when none
}

// None switches an address off: server.socket or server.listen.
const None = "none"

// Server says where the API listens and whom it believes.
type Server struct {
	Socket             string   `koanf:"socket" doc:"Path of the Unix socket; empty: <run_dir>/cjmd.sock; none: no socket."`
	SocketMode         string   `koanf:"socket_mode" doc:"Permission bits of the socket, octal."`
	SocketRole         string   `koanf:"socket_role" doc:"Role of those whom mode and group let in: admin, submit or read. Root and the daemon's own user are admin."`
	SocketGroup        string   `koanf:"socket_group" doc:"Group that owns the socket; empty: the daemon's own."`
	Listen             string   `koanf:"listen" doc:"TCP address host:port; none: no TCP. A token is always required there."`
	AllowedHosts       []string `koanf:"allowed_hosts" doc:"Host headers accepted on TCP besides the listen address and localhost."`
	AllowedOrigins     []string `koanf:"allowed_origins" doc:"Origins of browser pages accepted besides the daemon's own, scheme://host[:port]."`
	TLSCert            string   `koanf:"tls_cert" reload:"yes" doc:"PEM file with the certificate chain; together with tls_key. SIGHUP reads both again."`
	TLSKey             string   `koanf:"tls_key" reload:"yes" doc:"PEM file with the private key; together with tls_cert."`
	InsecureBind       bool     `koanf:"insecure_bind" doc:"Listen beyond loopback without TLS: first word. Tokens then cross the network in clear."`
	InsecureBindReally bool     `koanf:"insecure_bind_really" doc:"Listen beyond loopback without TLS: second word. Both must be true."`
}

// Log is about the daemon's own log lines.
type Log struct {
	Level  string `koanf:"level" reload:"yes" doc:"debug, info, warn or error."`
	Format string `koanf:"format" doc:"json, console, or auto: console on a terminal, else json."`
}

// Plugins says where manifests are found and where plugins keep their things.
type Plugins struct {
	Paths     []string `koanf:"paths" reload:"yes" doc:"Directories with manifests, searched before ./.cjm/plugins, ./.cjm/manifests, the user's and the system's."`
	Watch     bool     `koanf:"watch" doc:"Watch those directories; off: only a discover call rescans."`
	DataDir   string   `koanf:"data_dir" doc:"Parent of each plugin's own data directory; empty: <state_dir>/data."`
	ModelsDir string   `koanf:"models_dir" doc:"Shared directory for models (CJM_MODELS_DIR); empty: <state_dir>/models."`
}

// Jobs holds the defaults and bounds of jobs.
type Jobs struct {
	MaxAttempts    int           `koanf:"max_attempts" doc:"Attempts of a job that says nothing else; 1: at most once."`
	Retention      Retention     `koanf:"retention"`
	QueueTimeout   time.Duration `koanf:"queue_timeout" doc:"A job pending longer than this fails; 0s: never."`
	RunTimeout     time.Duration `koanf:"run_timeout" doc:"A job executing longer than this is stopped and fails; 0s: never."`
	MaxBodyMB      int           `koanf:"max_body_mb" reload:"yes" doc:"Largest args and kwargs of one job."`
	CancelGrace    time.Duration `koanf:"cancel_grace" doc:"Cooperative phase of a cancel."`
	InterruptGrace time.Duration `koanf:"interrupt_grace" doc:"Interrupt phase of a cancel, after which the worker is killed."`
	MaxPending     int           `koanf:"max_pending" doc:"Pending jobs beyond this are refused."`
	MaxPerUser     int           `koanf:"max_pending_per_submitter" doc:"Pending jobs of one submitter beyond this are refused; 0: no bound but max_pending."`
	FilesMB        int           `koanf:"files_mb" doc:"Files that may be uploaded for one job."`
	FilesTotalMB   int           `koanf:"files_total_mb" doc:"Files of all jobs, also what they left; beyond it uploads are refused."`
}

// Retention of ended jobs. A job goes only when both bounds are passed.
type Retention struct {
	Count int           `koanf:"count" reload:"yes" doc:"The newest so many ended jobs always stay."`
	Age   time.Duration `koanf:"age" reload:"yes" doc:"Ended jobs younger than this always stay; h, m, s, and d for days."`
}

// JobLog bounds the record of one job's chunks, progress and log lines.
type JobLog struct {
	MaxMB int `koanf:"max_mb" doc:"Size of one job's log; beyond it older chunks make room and a gap is told."`
}

// Workers holds the supervisor's limits.
type Workers struct {
	StallTimeout time.Duration   `koanf:"stall_timeout" doc:"A start without progress, log line or memory growth for this long fails."`
	StartCap     time.Duration   `koanf:"start_cap" doc:"No start takes longer than this, whatever it reports."`
	StopGrace    time.Duration   `koanf:"stop_grace" doc:"Between the polite request to stop and the kill."`
	DrainGrace   time.Duration   `koanf:"drain_grace" doc:"How long running jobs may finish when the daemon stops."`
	LogMaxMB     int             `koanf:"log_max_mb" doc:"Size at which a worker's log file is rotated."`
	LogFiles     int             `koanf:"log_files" doc:"Rotated log files kept per worker besides the current one."`
	Isolation    WorkerIsolation `koanf:"isolation"`
}

// WorkerIsolation is the wish for instances that state none themselves.
type WorkerIsolation struct {
	Tier string `koanf:"tier" doc:"auto (the strongest that works here) or 0, 1, 2, 3."`
}

// Scheduler chooses and tunes the admission policy.
type Scheduler struct {
	Policy      string        `koanf:"policy" reload:"yes" doc:"reserve (memory on every device is accounted for), permissive, safety or queue."`
	QueueWait   time.Duration `koanf:"queue_wait" doc:"Policy queue: how long a job may wait for resources before it fails; 0s: for ever."`
	RAMMarginMB int           `koanf:"ram_margin_mb" doc:"Host memory that is never given to workers."`
	GPUMarginMB int           `koanf:"gpu_margin_mb" doc:"Memory of each accelerator that is never given to workers."`
	MaxRunning  int           `koanf:"max_running_per_submitter" doc:"Jobs of one submitter that may run at once; 0: no bound."`
	CPUSlots    int           `koanf:"cpu_slots" doc:"Jobs that may execute at once on the whole machine; 0: no bound but each plugin's own."`
}

// Monitor chooses the source of facts that gates admission.
type Monitor struct {
	Name         string        `koanf:"name" doc:"The registered system monitor: auto (the first of nvidia, amd and cpu that works here), one of these, plugin:NAME (a plugin that is one, be it installed yet or not), or none."`
	IntervalIdle time.Duration `koanf:"interval_idle" doc:"Sampling while nothing loads or runs."`
	IntervalBusy time.Duration `koanf:"interval_busy" doc:"Sampling while something loads, runs or stops."`
	MaxAge       time.Duration `koanf:"max_age" doc:"A reading older than this is stale and admits nothing that needs it."`
}

// Limits protect the API.
type Limits struct {
	SSEStreams      int `koanf:"sse_streams" reload:"yes" doc:"Open event streams in total."`
	SSEPerPrincipal int `koanf:"sse_per_principal" reload:"yes" doc:"Open event streams of one user or token."`
	BodyMB          int `koanf:"body_mb" reload:"yes" doc:"Largest request body (a batch of jobs, a config)."`
	HeaderKB        int `koanf:"header_kb" doc:"Largest request header in KiB."`
	JSONDepth       int `koanf:"json_depth" reload:"yes" doc:"Deepest nesting of a JSON body."`
}

// Defaults is the configuration of a daemon that was told nothing, with its
// directories where dirs says.
func Defaults(dirs Dirs) Config {
	return Config{
		StateDir: dirs.State,
		LogDir:   dirs.Log,
		RunDir:   dirs.Run,
		CacheDir: dirs.Cache,
		Server: Server{
			SocketMode:     "0660",
			SocketRole:     "admin",
			Listen:         "127.0.0.1:8765",
			AllowedHosts:   []string{},
			AllowedOrigins: []string{},
		},
		Log:     Log{Level: "info", Format: "auto"},
		Plugins: Plugins{Paths: []string{}, Watch: true},
		Jobs: Jobs{
			MaxAttempts:    3,
			Retention:      Retention{Count: 10_000, Age: 30 * 24 * time.Hour},
			MaxBodyMB:      1,
			CancelGrace:    3 * time.Second,
			InterruptGrace: 2 * time.Second,
			MaxPending:     200_000,
			FilesMB:        10 << 10,
			FilesTotalMB:   100 << 10,
		},
		JobLog: JobLog{MaxMB: 64},
		Workers: Workers{
			StallTimeout: time.Minute,
			StartCap:     30 * time.Minute,
			StopGrace:    5 * time.Second,
			DrainGrace:   30 * time.Second,
			LogMaxMB:     16,
			LogFiles:     3,
			Isolation:    WorkerIsolation{Tier: "auto"},
		},
		Scheduler: Scheduler{Policy: "reserve", QueueWait: 300 * time.Second, RAMMarginMB: 512, GPUMarginMB: 256},
		Monitor: Monitor{
			Name:         "auto",
			IntervalIdle: 2 * time.Second,
			IntervalBusy: 200 * time.Millisecond,
			MaxAge:       10 * time.Second,
		},
		Limits:   Limits{SSEStreams: 1024, SSEPerPrincipal: 256, BodyMB: 16, HeaderKB: 64, JSONDepth: 64},
		Autoload: []string{},
	}
}

// File is the YAML file that was read, "" when there was none.
func (c *Config) File() string { return c.file }

// SocketPath is the Unix socket to listen on, "" when there shall be none.
func (c *Config) SocketPath() string {
	if c.Server.Socket == None {
		return ""
	}
	return c.Server.Socket
}

// DataDir is the parent of the plugins' own data directories.
func (c *Config) DataDir() string { return c.Plugins.DataDir }

// ModelsDir is where plugins share models.
func (c *Config) ModelsDir() string { return c.Plugins.ModelsDir }

// EnvsDir is where the installer puts the plugins' environments.
func (c *Config) EnvsDir() string { return filepath.Join(c.StateDir, "envs") }

// ManifestsDir is where the installer writes manifests.
func (c *Config) ManifestsDir() string { return filepath.Join(c.StateDir, "manifests") }

// SecretsDir holds one file of secrets per plugin.
func (c *Config) SecretsDir() string { return filepath.Join(c.StateDir, "secrets") }
