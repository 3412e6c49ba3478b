package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
)

// errShutdown is the cause that running jobs are cancelled with when the
// daemon stops; it makes them interrupted, not cancelled.
var errShutdown = errors.New("the daemon is shutting down")

// actor is one long-lived part with its own way to be told to end.
type actor struct {
	name string
	done chan struct{}
	err  error // read after done
}

// start runs f until it returns; failed hears of one that returns by itself.
func start(name string, failed chan<- *actor, f func() error) *actor {
	a := &actor{name: name, done: make(chan struct{})}
	go func() {
		a.err = f()
		close(a.done)
		failed <- a
	}()
	return a
}

// outcome waits for actors and returns what they ended with.
func outcome(actors ...*actor) error {
	var errs []error
	for _, a := range actors {
		<-a.done
		if a.err != nil && !errors.Is(a.err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, a.err))
		}
	}
	return errors.Join(errs...)
}

// run serves until a signal comes, stop ends or a part fails, and takes
// everything down in the order of docs/ARCHITECTURE.md. A second signal ends the
// wait for running jobs.
func (d *daemonParts) run(stop context.Context, signals <-chan os.Signal) error {
	failed := make(chan *actor, 7+len(d.listeners.unix)+len(d.listeners.tcp)) // one slot for each actor: none ever blocks
	admit, stopAdmit := context.WithCancel(context.Background())
	work, stopWork := context.WithCancelCause(context.Background())
	workers, stopWorkers := context.WithCancel(context.Background())
	facts, stopFacts := context.WithCancel(context.Background())
	defer stopAdmit()
	defer stopWork(nil)
	defer stopWorkers()
	defer stopFacts()

	catalog := start("plugin catalogue", failed, func() error { return d.catalog.Run(facts) })
	gate := start("monitors", failed, func() error { return d.gate.Run(facts) })
	simulated := start("simulated machine", failed, func() error { return d.runSimulation(facts) })
	keeper := start("retention", failed, func() error { return d.queue.Run(facts) })
	sup := start("supervisor", failed, func() error { return d.supervisor.Run(workers) })
	loop := start("scheduler", failed, func() error { return d.scheduler.Run(admit, work) })
	web := d.serveHTTP(failed)
	background := start("autoload and watchdog", failed, func() error { return d.background(facts) })

	d.announce()
	cause := d.serve(stop, signals, failed)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	d.ready.set("the daemon is stopping")
	d.closed.Store(true) // no new jobs
	d.store.Emit(events.Draft{Kind: events.DaemonStopping})
	stopAdmit()
	d.drain(loop, signals)
	stopWork(errShutdown)
	err := outcome(loop)
	stopWorkers()
	err = errors.Join(err, outcome(sup))
	stopFacts()
	err = errors.Join(err, outcome(gate, catalog, keeper, background, simulated))
	d.endStreams()
	d.hub.Close()
	err = errors.Join(err, d.queue.Close()) // ends readers of job logs
	d.shutdownHTTP()
	return errors.Join(cause, err, outcome(web...), d.close())
}

// serve returns when it is time to stop: nil when somebody said so.
func (d *daemonParts) serve(stop context.Context, signals <-chan os.Signal, failed <-chan *actor) error {
	for {
		select {
		case sig := <-signals:
			if isReload(sig) {
				d.reload()
				continue
			}
			d.log.Info("stopping", zap.String("signal", sig.String()))
			return nil
		case <-stop.Done():
			d.log.Info("stopping")
			return nil
		case a := <-failed:
			d.log.Error("a part ended unexpectedly", zap.String("part", a.name), zap.Error(a.err))
			return fmt.Errorf("cannot go on: %s ended unexpectedly", a.name)
		}
	}
}

// drain waits for running jobs, for the drain time at most; another signal
// ends the wait.
func (d *daemonParts) drain(loop *actor, signals <-chan os.Signal) {
	timer := time.NewTimer(d.cfg.Workers.DrainGrace)
	defer timer.Stop()
	for {
		select {
		case <-loop.done:
			return
		case sig := <-signals:
			if isReload(sig) {
				continue
			}
			d.log.Info("not waiting for running jobs any longer", zap.String("signal", sig.String()))
			return
		case <-timer.C:
			d.log.Info("drain time is over: running jobs return to the queue")
			return
		}
	}
}

// serveHTTP serves every listener, each as a part of its own: the daemon does
// not go on with some of its addresses dead.
func (d *daemonParts) serveHTTP(failed chan<- *actor) []*actor {
	var web []*actor
	serve := func(s *http.Server, ls []net.Listener) {
		for _, l := range ls {
			web = append(web, start("http on "+l.Addr().String(), failed, func() error {
				if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					return err
				}
				return nil
			}))
		}
	}
	serve(d.unixServer, d.listeners.unix)
	serve(d.tcpServer, d.listeners.tcp)
	return web
}

// shutdownHTTP lets answers that are on their way out leave; streams have
// ended before.
func (d *daemonParts) shutdownHTTP() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for _, s := range []*http.Server{d.unixServer, d.tcpServer} {
		if err := s.Shutdown(ctx); err != nil {
			d.log.Warn("closing connections that did not end by themselves", zap.Error(err))
			_ = s.Close()
		}
	}
}
