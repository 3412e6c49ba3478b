package main

import (
	"context"
	"errors"
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

// run serves until a signal comes or a part fails, and takes everything down
// in the order of docs/ARCHITECTURE.md. A second signal ends the wait for
// running jobs.
func (d *daemonParts) run(signals <-chan os.Signal) error {
	failed := make(chan *actor, 8) // one slot for each actor: none ever blocks
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
	keeper := start("retention", failed, func() error { return d.queue.Run(facts) })
	sup := start("supervisor", failed, func() error { return d.supervisor.Run(workers) })
	loop := start("scheduler", failed, func() error { return d.scheduler.Run(admit, work) })
	web := start("http", failed, d.serveHTTP)
	background := start("autoload and watchdog", failed, func() error { return d.background(facts) })

	d.announce()
	var cause error
	for serving := true; serving; {
		select {
		case sig := <-signals:
			if isReload(sig) {
				d.reload()
				continue
			}
			d.log.Info("stopping", zap.String("signal", sig.String()))
			serving = false
		case a := <-failed:
			cause = a.err
			d.log.Error("a part ended unexpectedly", zap.String("part", a.name), zap.Error(a.err))
			serving = false
		}
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	d.ready.set("the daemon is stopping") // not ready, and no new jobs
	d.store.Emit(events.Draft{Kind: events.DaemonStopping})
	stopAdmit()
	d.drain(loop, signals)
	stopWork(errShutdown)
	<-loop.done
	stopWorkers()
	<-sup.done
	stopFacts()
	<-gate.done
	<-catalog.done
	<-keeper.done
	<-background.done
	d.endStreams()
	d.hub.Close()
	d.queue.Close() // ends readers of job logs
	d.shutdownHTTP()
	<-web.done
	return errors.Join(cause, d.close())
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

// serveHTTP serves every listener and returns when all have ended.
func (d *daemonParts) serveHTTP() error {
	type served struct{ err error }
	n := 0
	ended := make(chan served)
	serve := func(s *http.Server, ls []net.Listener) {
		for _, l := range ls {
			n++
			go func() { ended <- served{s.Serve(l)} }()
		}
	}
	serve(d.unixServer, d.listeners.unix)
	serve(d.tcpServer, d.listeners.tcp)
	var errs []error
	for range n {
		if s := <-ended; !errors.Is(s.err, http.ErrServerClosed) {
			errs = append(errs, s.err)
		}
	}
	return errors.Join(errs...)
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
