package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/config"
	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/monitors"
)

// serveCommand is `cjmd serve`, which is also what cjmd without a verb does.
func serveCommand(env []string) *cobra.Command {
	c := &cobra.Command{
		Use: "serve", Short: "Run the daemon", Args: cobra.NoArgs,
		Long: "Serve until SIGTERM or SIGINT. A second signal stops waiting for running jobs; SIGHUP reads the configuration again.",
	}
	config.AddFlags(c.Flags())
	var simulated simulation
	simulated.addFlags(c.Flags())
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		load := func() (*config.Config, error) {
			return config.Load(config.Options{Env: env, Flags: cmd.Flags()})
		}
		cfg, err := load()
		if err != nil {
			return err
		}
		log, level, err := newLogger(cfg.Log, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		defer func() { _ = log.Sync() }()

		signals := make(chan os.Signal, 4)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer signal.Stop(signals)

		starting := begin(cmd.Context(), signals)
		d, err := assemble(starting.ctx, cfg, env, log, simulated.open)
		if sig := starting.end(); sig != nil {
			log.Info("stopped while starting", zap.String("signal", sig.String()))
			if err == nil {
				err = d.close()
			} else if errors.Is(err, context.Canceled) {
				err = nil
			}
			return err
		}
		if err != nil {
			return err
		}
		d.level, d.loadConfig = level, load
		return d.run(cmd.Context(), signals)
	}
	return c
}

// starting listens to signals while the daemon is assembled.
type starting struct {
	ctx     context.Context // ends when the start is to be given up
	signals chan os.Signal
	over    chan struct{}
	done    chan struct{}
	stop    os.Signal // read after done
	reload  bool      // likewise
}

func begin(parent context.Context, signals chan os.Signal) *starting {
	ctx, cancel := context.WithCancel(parent)
	s := &starting{ctx: ctx, signals: signals, over: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer cancel()
		for {
			select {
			case sig := <-signals:
				if isReload(sig) {
					s.reload = true
					continue
				}
				s.stop = sig
				return
			case <-s.over:
				return
			}
		}
	}()
	return s
}

// end returns the signal that stopped the start, nil when none did. A SIGHUP
// that came meanwhile is not lost.
func (s *starting) end() os.Signal {
	close(s.over)
	<-s.done
	if s.reload {
		select {
		case s.signals <- syscall.SIGHUP:
		default: // others are waiting already
		}
	}
	return s.stop
}

func isReload(s os.Signal) bool { return s == syscall.SIGHUP }

// readiness is what /readyz says: nothing, or why jobs are not welcome.
type readiness struct {
	mu     sync.Mutex
	reason string // guarded by mu
}

func (r *readiness) set(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reason = reason
}

func (r *readiness) get() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason
}

// announce tells systemd, the log and the journal that the daemon serves.
func (d *daemonParts) announce() {
	d.ready.set("")
	addresses := make([]string, 0, 2)
	for _, l := range d.listeners.unix {
		addresses = append(addresses, "unix:"+l.Addr().String())
	}
	for _, l := range d.listeners.tcp {
		addresses = append(addresses, l.Addr().String())
	}
	d.log.Info("serving",
		zap.Strings("addresses", addresses),
		zap.String("state_dir", d.cfg.StateDir),
		zap.String("version", version),
		zap.Int("pending", d.recovered.Pending),
		zap.Int("requeued", d.recovered.Requeued))
	d.store.Emit(events.Draft{Kind: events.DaemonStarted, Data: map[string]any{
		"version": version, "pid": os.Getpid(),
		"requeued": d.recovered.Requeued, "interrupted": d.recovered.Failed,
	}})
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		d.log.Warn("cannot tell systemd that the daemon is ready", zap.Error(err))
	}
}

// background loads the instances of `autoload` and feeds the watchdog of
// systemd for as long as the scheduling loop turns.
func (d *daemonParts) background(ctx context.Context) error {
	var loads sync.WaitGroup
	for _, instance := range d.cfg.Autoload {
		loads.Go(func() {
			if err := d.scheduler.Load(ctx, instance); err != nil && ctx.Err() == nil {
				d.log.Error("cannot load an instance of autoload", zap.String("instance", instance), zap.Error(err))
			}
		})
	}
	defer loads.Wait()
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if why := d.stuck(ctx); len(why) > 0 {
				d.log.Error("not feeding the watchdog", zap.Strings("why", why))
				continue
			}
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}

const (
	// loopSilence is how long the scheduling loop may be silent before the process
	// counts as stuck; it completes a pass every few seconds even when idle.
	loopSilence = 30 * time.Second
	// storeSilence is the same for one commit of the job store. Disks that recover
	// from an error by themselves have been seen to take half a minute.
	storeSilence = time.Minute
)

// stuck says why the process should be restarted; nothing when it is healthy.
func (d *daemonParts) stuck(context.Context) (why []string) {
	last := d.scheduler.Heartbeat()
	if last.IsZero() {
		last = d.startedAt
	}
	if silent := time.Since(last); silent > loopSilence {
		why = append(why, fmt.Sprintf("the scheduling loop has been silent for %s", silent.Round(time.Second)))
	}
	if writing := d.store.WritingFor(); writing > storeSilence {
		why = append(why, fmt.Sprintf("the job store has been writing one batch for %s", writing.Round(time.Second)))
	}
	return why
}

// notReady says why jobs are not welcome; nothing when they are.
func (d *daemonParts) notReady(ctx context.Context) []string {
	why := d.stuck(ctx)
	if r := d.ready.get(); r != "" {
		why = append(why, r)
	}
	if err := d.store.Writable(); err != nil {
		reason := "the job store cannot be written; the log has the cause"
		if errors.Is(err, syscall.ENOSPC) {
			reason = "the disk is full"
		}
		why = append(why, reason) // whoever asks need not be known: no paths
	}
	for _, m := range d.gate.State() {
		if m.State != monitors.StateFresh {
			why = append(why, fmt.Sprintf("monitor %s is %s", m.Name, m.State))
		}
	}
	return why
}

// reload applies what SIGHUP can apply and says what waits for a restart.
func (d *daemonParts) reload() {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading)
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }()
	next, err := d.loadConfig()
	if err != nil {
		d.log.Error("cannot reload: the old configuration stays in force", zap.Error(err))
		return
	}
	apply, restart := config.Diff(d.current.Load(), next)
	if err := d.apply(next); err != nil {
		d.log.Error("cannot apply all of the new configuration", zap.Error(err))
	}
	d.log.Info("configuration reloaded", zap.Strings("applied", apply), zap.Strings("need_restart", restart))
}

func (d *daemonParts) apply(next *config.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	old := d.current.Swap(next)
	var errs []error
	if lvl, err := zap.ParseAtomicLevel(next.Log.Level); err == nil {
		d.level.SetLevel(lvl.Level())
	}
	if strings.Join(old.Plugins.Paths, "\n") != strings.Join(next.Plugins.Paths, "\n") {
		errs = append(errs, d.catalog.SetPaths(ctx, d.pluginPaths(next)))
	}
	if old.Scheduler.Policy != next.Scheduler.Policy {
		errs = append(errs, d.scheduler.SetPolicy(ctx, next.Scheduler.Policy))
	}
	if d.listeners.cert != nil && next.Server.TLSCert != "" {
		errs = append(errs, d.listeners.cert.load(next.Server))
	}
	d.queue.SetRetention(next.Jobs.Retention.Count, next.Jobs.Retention.Age)
	return errors.Join(errs...)
}
