package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api"
	"github.com/cjmd/cjmd/internal/config"
	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/basic"
	"github.com/cjmd/cjmd/internal/isolation/contained"
	"github.com/cjmd/cjmd/internal/isolation/none"
	"github.com/cjmd/cjmd/internal/isolation/sandboxed"
	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/jobfiles"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/amd"
	"github.com/cjmd/cjmd/internal/monitors/auto"
	"github.com/cjmd/cjmd/internal/monitors/cpu"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/simserve"
	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/cjmhttp"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
	pysdk "github.com/cjmd/cjmd/sdk/python"
)

// daemonParts is the assembled daemon: every long-lived part, built but not
// started. run (shutdown.go) starts and ends them.
type daemonParts struct {
	cfg        *config.Config // as started with; current follows SIGHUP
	current    atomic.Pointer[config.Config]
	env        []string
	log        *zap.Logger
	level      zap.AtomicLevel
	loadConfig func() (*config.Config, error)
	startedAt  time.Time
	ready      readiness
	closed     atomic.Bool // no new jobs

	store      *sqlitestore.Store
	hub        *events.Hub
	queue      *jobs.Queue
	recovered  jobs.Recovered
	catalog    *plugins.Catalog
	secrets    *plugins.Secrets
	host       *tree.Host
	supervisor *supervisor.Supervisor
	gate       *monitors.Gate
	scheduler  *sched.Scheduler
	simulated  *simserve.Machine // nil: the machine is the real one
	listeners  listeners
	unixServer *http.Server
	tcpServer  *http.Server
	endStreams context.CancelFunc
	// submitTrace: the jobs of the simulated machine's trace are submitted, too.
	submitTrace bool

	closers []func() error // in order of opening
}

// transports, tiers, monitorList and policies are the lists of what exists.
func transports() []supervisor.Transport {
	return []supervisor.Transport{rpc.New(rpc.Options{}), cjmhttp.New(cjmhttp.Options{})}
}

func tiers(cfg *config.Config, host *tree.Host) []isolation.Tier {
	return []isolation.Tier{none.New(host), basic.New(host), contained.New(host), sandboxed.New(host, sandboxed.Options{Hide: hiddenDirs(cfg)})}
}

func monitorList() []monitors.Constructor {
	own := []monitors.Constructor{
		nvidia.Constructor(),
		amd.Constructor(),
		cpu.Constructor(),
	}
	return append(own, auto.Constructor(own...))
}

func policies(cfg *config.Config) []sched.Policy {
	wait := cfg.Scheduler.QueueWait
	if wait == 0 { // for ever, says the configuration
		wait = math.MaxInt64
	}
	return []sched.Policy{policy.Reserve(policy.ReserveOptions{}), policy.Permissive(), policy.Safety(), policy.Queue(wait)}
}

// assemble builds everything in the order in which things depend on each
// other; first comes right after the directories. On an error what was opened is
// closed again.
func assemble(ctx context.Context, cfg *config.Config, env []string, log *zap.Logger, first ...func(*daemonParts) error) (_ *daemonParts, err error) {
	d := &daemonParts{cfg: cfg, env: env, log: log, startedAt: time.Now()}
	d.current.Store(cfg)
	d.ready.set("the daemon is starting")
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	for _, step := range []func() error{
		d.makeDirs,
		func() error {
			for _, f := range first {
				if err := f(d); err != nil {
					return err
				}
			}
			return nil
		},
		func() error { return d.openJobs(ctx) },
		func() error { return d.openPlugins(ctx) },
		func() error { return d.openWorkers(ctx, registry) },
		func() error { return d.openScheduler(ctx, registry) },
		func() error { return d.openAPI(registry) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// close undoes assemble, last opened first. Everything that runs has ended.
func (d *daemonParts) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

func (d *daemonParts) onClose(f func() error) { d.closers = append(d.closers, f) }

func (d *daemonParts) makeDirs() error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{
		{d.cfg.StateDir, 0o700}, {d.cfg.LogDir, 0o750}, {d.cfg.CacheDir, 0o755}, {d.cfg.RunDir, 0o755},
	} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("cannot make directory: %w", err)
		}
	}
	return nil
}

// openJobs locks the state directory, opens the store and brings the queue to
// where the last daemon left it.
func (d *daemonParts) openJobs(ctx context.Context) (err error) {
	if d.store, err = sqlitestore.Open(ctx, sqlitestore.Options{Dir: d.cfg.StateDir, Log: d.log.Named("store")}); err != nil {
		return err
	}
	d.onClose(d.store.Close)
	d.hub = events.NewHub(events.Options{Source: d.store})
	d.onClose(func() error { d.hub.Close(); return nil })
	d.queue, err = jobs.NewQueue(jobs.Options{
		Store:        d.store,
		Hub:          d.hub,
		Log:          d.log.Named("jobs"),
		LogDir:       filepath.Join(d.cfg.StateDir, "joblogs"),
		JobDir:       filepath.Join(d.cfg.StateDir, "jobdirs"),
		FileLimits:   jobfiles.Limits{JobBytes: int64(d.cfg.Jobs.FilesMB) << 20, TotalBytes: int64(d.cfg.Jobs.FilesTotalMB) << 20},
		MaxPending:   d.cfg.Jobs.MaxPending,
		MaxPerUser:   d.cfg.Jobs.MaxPerUser,
		MaxAttempts:  d.cfg.Jobs.MaxAttempts,
		QueueTimeout: d.cfg.Jobs.QueueTimeout,
		RunTimeout:   d.cfg.Jobs.RunTimeout,
		KeepJobs:     d.cfg.Jobs.Retention.Count,
		KeepAge:      d.cfg.Jobs.Retention.Age,
		JobLog:       joblog.Limits{TotalBytes: int64(d.cfg.JobLog.MaxMB) << 20},
	})
	if err != nil {
		return err
	}
	d.recovered, err = d.queue.Recover(ctx)
	return err
}

// pluginPaths is the search path for manifests.
func pluginPaths(cfg *config.Config, env []string) []string {
	getenv := lookup(env)
	cwd, _ := os.Getwd() // without one there is nothing to search there
	var configDir string
	if dirs, err := config.DefaultDirs(getenv, os.Getuid()); err == nil {
		configDir = dirs.Config
	}
	return plugins.DefaultPaths(append(slices.Clone(cfg.Plugins.Paths), cfg.ManifestsDir()), cwd, getenv("HOME"), configDir)
}

// pluginPaths puts the plugins of a simulated machine first.
func (d *daemonParts) pluginPaths(cfg *config.Config) []string {
	paths := pluginPaths(cfg, d.env)
	if d.simulated != nil {
		paths = append([]string{d.simulated.PluginDir()}, paths...)
	}
	return paths
}

func (d *daemonParts) openPlugins(ctx context.Context) (err error) {
	d.secrets = plugins.NewSecrets(d.cfg.SecretsDir())
	d.catalog, err = plugins.New(plugins.Options{
		Paths:   d.pluginPaths(d.cfg),
		EnvsDir: d.cfg.EnvsDir(),
		Store:   d.store,
		Journal: d.store,
		Log:     d.log.Named("plugins"),
		NoWatch: !d.cfg.Plugins.Watch,
	})
	if err != nil {
		return err
	}
	_, err = d.catalog.Discover(ctx)
	return err
}

// reclaimTimeout bounds the end of what an earlier daemon left: processes that
// do not die hold memory that this one would give away a second time.
const reclaimTimeout = 30 * time.Second

// openWorkers clears away what an earlier daemon left running, then prepares
// the supervisor.
func (d *daemonParts) openWorkers(ctx context.Context, reg prometheus.Registerer) (err error) {
	if d.host, err = tree.New(tree.Options{StateDir: d.cfg.StateDir, Log: d.log.Named("isolation")}); err != nil {
		return err
	}
	d.onClose(d.host.Close)
	ctx, cancel := context.WithTimeout(ctx, reclaimTimeout)
	defer cancel()
	killed, err := d.host.Reclaim(ctx)
	if err != nil {
		return fmt.Errorf("cannot end what an earlier daemon left running: %w", err)
	}
	if killed > 0 {
		d.log.Warn("ended processes that an earlier daemon left running", zap.Int("processes", killed))
	}
	runtime, err := pysdk.Extract(filepath.Join(d.cfg.CacheDir, "runtime"))
	if err != nil {
		return fmt.Errorf("cannot unpack the worker runtime: %w", err)
	}
	d.supervisor, err = supervisor.New(supervisor.Options{
		Catalog: &specs{
			cfg: d.cfg, plugins: d.catalog, runtime: runtime, environ: d.env,
			secrets: d.secrets,
			machine: func() resource.Snapshot { // the gate is there before the first start
				snap, _ := d.gate.Latest()
				return snap
			},
		},
		Transports:  transports(),
		Tiers:       tiers(d.cfg, d.host),
		Journal:     d.store,
		LogRoot:     filepath.Join(d.cfg.LogDir, "workers"),
		LogLimits:   supervisor.LogLimits{FileBytes: int64(d.cfg.Workers.LogMaxMB) << 20, Files: d.cfg.Workers.LogFiles},
		Log:         d.log.Named("workers"),
		Metrics:     reg,
		CancelGrace: d.cfg.Jobs.CancelGrace,
		Interrupt:   d.cfg.Jobs.InterruptGrace,
	})
	return err
}

func (d *daemonParts) openScheduler(ctx context.Context, reg prometheus.Registerer) (err error) {
	list, name := d.simulatedMonitor(monitorList(), d.cfg.Monitor.Name)
	d.gate, err = monitors.New(monitors.Options{
		MaxAge:       d.cfg.Monitor.MaxAge,
		Pace:         monitors.NewPace(d.cfg.Monitor.IntervalBusy, d.cfg.Monitor.IntervalIdle),
		Constructors: list,
		Plugin:       d.pluginMonitor,
		Log:          d.log.Named("monitors"),
		Journal:      d.store,
	})
	if err != nil {
		return err
	}
	if name != config.None {
		if err := d.gate.RegisterName(ctx, name); err != nil {
			return err
		}
	}
	d.scheduler, err = sched.New(sched.Options{
		Queue:     sched.JobQueue{Queue: d.queue, Log: d.log.Named("sched")},
		Workers:   d.supervisor,
		Gate:      d.gate,
		Catalog:   d.catalog,
		Policies:  policies(d.cfg),
		Policy:    d.cfg.Scheduler.Policy,
		Journal:   d.store,
		Log:       d.log.Named("sched"),
		Metrics:   reg,
		Slots:     d.cfg.Scheduler.CPUSlots,
		RAMMargin: resource.FromMB(float64(d.cfg.Scheduler.RAMMarginMB)),
		Margin:    resource.FromMB(float64(d.cfg.Scheduler.GPUMarginMB)),

		MaxRunningPerSubmitter: d.cfg.Scheduler.MaxRunning,
		Profiles:               d.store,
		Claims:                 d.store,
		Leases:                 d.store,
	})
	return err
}

func (d *daemonParts) openAPI(gatherer prometheus.Gatherer) error {
	tokens, err := api.OpenTokens(d.cfg.StateDir, nil)
	if err != nil {
		return err
	}
	if _, err := tokens.EnsureAdminToken(); err != nil {
		return err
	}
	streams, endStreams := context.WithCancel(context.Background())
	d.endStreams = endStreams
	d.onClose(func() error { endStreams(); return nil })
	handler, err := api.NewHandler(api.Options{
		Jobs:      intake{api.NewJobs(d.queue), &d.closed},
		Lifecycle: d.scheduler,
		Ledger:    d.scheduler,
		Plugins:   d.catalog,
		Secrets:   d.secrets,
		Workers:   d.supervisor,
		Machine:   machine{d.gate, d.catalog},
		Feed:      d.hub,
		Tokens:    tokens,
		Access: api.AccessOptions{
			AdminUIDs:      []uint32{0, uint32(os.Getuid())},
			SocketRole:     api.Role(d.cfg.Server.SocketRole),
			AllowedHosts:   d.cfg.Server.AllowedHosts,
			AllowedOrigins: d.cfg.Server.AllowedOrigins,
		},
		Log:         d.log.Named("api"),
		Gatherer:    gatherer,
		BaseURL:     d.baseURL,
		Ready:       d.notReady,
		Degraded:    d.scheduler.Shut,
		Live:        d.stuck,
		Version:     api.VersionInfo{Version: version, Commit: commit, BuiltAt: date},
		StreamsDone: streams,
		Limits:      d.limits,
	})
	if err != nil {
		return err
	}
	if d.listeners, err = listen(d.cfg, d.log); err != nil {
		return err
	}
	d.onClose(func() error { d.listeners.close(); return nil })
	d.unixServer, d.tcpServer = d.httpServer(handler), d.httpServer(handler)
	return nil
}

// baseURL is where a browser on this machine reaches the daemon over TCP; "" when
// it cannot. Asked only by requests, which come after the listeners are open.
func (d *daemonParts) baseURL() string {
	if len(d.listeners.tcp) == 0 {
		return ""
	}
	scheme := "http://"
	if d.cfg.Server.TLSCert != "" {
		scheme = "https://"
	}
	host, port, err := net.SplitHostPort(d.listeners.tcp[0].Addr().String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + net.JoinHostPort(host, port)
}

// httpServer bounds what a slow or hostile client can hold. There is no write
// timeout: streams bound each write themselves.
func (d *daemonParts) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ConnContext:       api.ConnContext,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    d.cfg.Limits.HeaderKB << 10,
		ErrorLog:          zap.NewStdLog(d.log.Named("http")),
	}
}

// limits follow a reload: the API asks for them with each request.
func (d *daemonParts) limits() api.Limits {
	l, cfg := api.DefaultLimits(), d.current.Load()
	l.Job = int64(cfg.Jobs.MaxBodyMB) << 20
	l.Body = int64(cfg.Limits.BodyMB) << 20
	l.Job = int64(cfg.Jobs.MaxBodyMB) << 20
	l.Body = int64(cfg.Limits.BodyMB) << 20
	l.Depth = cfg.Limits.JSONDepth
	l.Streams = cfg.Limits.SSEStreams
	l.StreamsPerPrincipal = cfg.Limits.SSEPerPrincipal
	return l
}

func lookup(env []string) func(string) string {
	return func(name string) string {
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
}
