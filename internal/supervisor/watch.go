package supervisor

import (
	"context"
	"fmt"
	"time"
)

// growthStep is how much a loading worker must grow to count as getting on.
const growthStep = 1 << 20

// tick looks at the process once per SampleEvery.
func (w *worker) tick() {
	p := w.proc
	if p == nil || w.ending != nil {
		return
	}
	switch w.st {
	case Initializing:
		w.checkLoad(p)
	case Busy, Draining:
		p.sample()
	}
	if w.st.live() {
		w.checkAlive(p)
		if len(w.failures) > 0 && w.s.o.Restart.Forget(time.Since(w.readyAt)) {
			w.failures = nil
			w.publish()
		}
	}
}

// checkLoad ends a start that stands still or takes too long. Progress, log
// lines and growing memory are signs of life.
func (w *worker) checkLoad(p *process) {
	if u, _ := p.sample(); u.RSS > w.growth+growthStep {
		w.growth = u.RSS
		p.hear()
	}
	switch {
	case time.Since(p.started) > p.spec.StartCap:
		w.end(ending{cause: fmt.Sprintf("not ready after %v", p.spec.StartCap), step: "timeout", byUs: true, failure: true, timeout: true})
	case p.silence() > p.spec.StallTimeout:
		w.end(ending{cause: fmt.Sprintf("no progress, log line or growth for %v", p.spec.StallTimeout), step: "stall", byUs: true, failure: true, timeout: true})
	}
}

// checkAlive pings, and judges the answers. No answer is not death: a library
// may hold the interpreter. Without any CPU time either, it is.
func (w *worker) checkAlive(p *process) {
	now := time.Now()
	if !w.pinging && !now.Before(w.nextPing) {
		w.ping(p)
	}
	silent := min(now.Sub(w.pongAt), p.silence())
	switch {
	case w.st != Unresponsive && silent > w.s.o.PongTimeout:
		u, _ := p.sample()
		w.frozenCPU, w.frozenAt = u.CPUTime, now
		w.to(Unresponsive, fmt.Sprintf("no answer to a ping for %v", silent.Round(time.Second)))
	case w.st == Unresponsive && silent <= w.s.o.PongTimeout:
		w.responsive("answers again")
	case w.st == Unresponsive:
		if u, _ := p.sample(); u.CPUTime != w.frozenCPU {
			w.frozenCPU, w.frozenAt = u.CPUTime, now
		}
		if now.Sub(w.frozenAt) > w.s.o.FrozenAfter {
			w.end(ending{cause: fmt.Sprintf("frozen: no answer and no CPU time for %v", w.s.o.FrozenAfter), byUs: true, failure: true, timeout: true})
		}
	case w.st == ReadyState && now.Sub(p.sampledAt()) > w.s.o.PingEvery:
		p.sample()
	}
}

func (w *worker) responsive(cause string) {
	if len(w.calls) > 0 {
		w.to(Busy, cause)
	} else {
		w.to(ReadyState, cause)
	}
	w.settle(nil)
}

func (w *worker) ping(p *process) {
	w.pinging = true
	w.nextPing = time.Now().Add(w.s.o.PingEvery)
	w.tasks.Add(1)
	go func() {
		defer w.tasks.Done()
		ctx, cancel := context.WithTimeout(context.Background(), w.s.o.PongTimeout)
		defer cancel()
		_, err := p.conn.Request(ctx, "ping", nil)
		w.post(func() {
			if w.proc != p {
				return
			}
			w.pinging = false
			if err == nil {
				w.pongAt = time.Now()
				if w.st == Unresponsive {
					w.responsive("answers again")
				}
			}
		})
	}()
}

// connEvent is what a worker says outside any call; it runs on the
// connection's goroutine.
func (w *worker) connEvent(p *process, e ConnEvent) {
	p.hear()
	switch {
	case e.Log != nil:
		p.log.record(*e.Log)
	case e.Progress != nil:
		w.post(func() {
			if w.proc == p {
				w.progress = *e.Progress
				w.publish()
			}
		})
	case e.Usage != nil:
		w.post(func() {
			if w.proc == p {
				w.usage = e.Usage
				w.publish()
			}
		})
	}
}
