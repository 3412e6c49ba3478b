package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

const runHelp = `Submits a job, follows it to its end and prints what it returns.

  cjm-ctl run textstats text='to be or not to be'
  cjm-ctl run speech audio=@talk.wav --stream
  cjm-ctl run speech --file audio=talk.wav      (sends the file)

Chunks of a streaming job are printed as they come, else the result at the
end; progress and everything else goes to stderr. Ctrl-C cancels the job, a
second Ctrl-C leaves it to itself. The exit code says how the job ended
(cjm-ctl help exit-codes).

` + argsHelp

// runFlags are what run has besides submitFlags.
type runFlags struct {
	submit       submitFlags
	logs, result bool
}

func newRun(a *app) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run PLUGIN [ARG…] [key=value…]", GroupID: groupJobs, Args: count(1, -1),
		Short: "Submit a job, follow it and print what it returns", Long: runHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.doQuiet(func(ctx context.Context, c *client.API, args []string) error {
				req, files, err := f.submit.request(a, args[0], args[1:])
				if err != nil {
					return err
				}
				return a.run(ctx, c, req, files, f)
			})(cmd.Context(), args)
		},
	}
	f.submit.register(cmd.Flags())
	cmd.Flags().BoolVar(&f.logs, "logs", false, "show the job's log lines on stderr, too")
	cmd.Flags().BoolVar(&f.result, "result", false, "print the result also after chunks were printed")
	return cmd
}

var errDetached = fmt.Errorf("%w: left to itself", errInterrupted)

// run submits and follows. Ctrl-C is handled here, so that it can cancel the job.
func (a *app) run(ctx context.Context, c *client.API, req wire.JobRequest, files []upload, f runFlags) error {
	ctx, detach := context.WithCancelCause(ctx)
	r := &follower{a: a, c: c, flags: f, detach: detach, screen: newLive(a, view{title: req.Plugin, phase: "submitting", fraction: -1, started: a.now()})}

	stop := make(chan struct{})
	r.helpers.Go(func() { r.watchKeys(ctx, stop) })
	r.helpers.Go(func() { r.screen.spin(stop) })
	// Nothing may write to the terminal after run returned.
	defer r.helpers.Wait()
	defer close(stop)
	defer detach(nil)
	defer r.screen.close()

	job, err := f.submit.send(ctx, c, req, "", files)
	if err != nil {
		return r.cause(ctx, err)
	}
	r.accept(ctx, job)
	if err := r.follow(ctx, "/v1/jobs/"+url.PathEscape(job.value.Id)+"/events"); err != nil {
		return r.cause(ctx, err)
	}
	return r.finish(ctx)
}

// follower is one job being followed.
type follower struct {
	a      *app
	c      *client.API
	flags  runFlags
	screen *live
	detach context.CancelCauseFunc

	helpers sync.WaitGroup // everything that run started

	mu     sync.Mutex // guards what the key watcher shares
	id     string     // "" until the job is accepted
	cancel bool       // Ctrl-C was pressed

	chunks int // printed; owned by the goroutine that follows
	lost   int // connections lost since the last event
}

func (r *follower) jobID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

func (r *follower) accept(ctx context.Context, job reply[wire.Job]) {
	r.mu.Lock()
	r.id = job.value.Id
	cancel := r.cancel
	r.mu.Unlock()
	if cancel { // pressed while the submit was under way
		r.cancelJob(ctx, job.value.Id)
	}
	if r.a.json {
		return // the records name the job
	}
	r.screen.say(r.a.talk.paint(dim, "job "+job.value.Id))
	if !cancel {
		r.screen.update(func(v *view) { v.phase = status(job.value) })
	}
}

// watchKeys handles Ctrl-C: the first cancels the job, the second lets go of it.
func (r *follower) watchKeys(ctx context.Context, stop <-chan struct{}) {
	for pressed := 1; ; pressed++ {
		select {
		case <-stop:
			return
		case <-r.a.signals:
		}
		r.mu.Lock()
		r.cancel = true
		id := r.id
		r.mu.Unlock()
		switch {
		case pressed == 1:
			r.screen.say("cancelling the job (Ctrl-C again leaves it to itself)")
			r.screen.update(func(v *view) { v.phase = "cancelling" })
			if id != "" {
				r.cancelJob(ctx, id)
			}
			continue
		case id == "":
			r.screen.say("the daemon has not answered; whether it took the job is not known: cjm-ctl jobs --mine")
		default:
			r.screen.say("leaving job " + id + " to itself; cjm-ctl wait " + id + " follows it again")
		}
		r.detach(errDetached)
		return
	}
}

// cancelJob asks the daemon without waiting for its answer: the events tell.
// A second Ctrl-C must not take the request back, so it has its own end.
func (r *follower) cancelJob(ctx context.Context, id string) {
	r.helpers.Go(func() {
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer done()
		_, err := read[wire.Job](r.c.CancelJob(ctx, id, wire.CancelRequest{Reason: "Ctrl-C in cjm-ctl run"}))
		if err != nil {
			r.screen.say("cannot cancel job " + id + ": " + harmless(err.Error(), false))
		}
	})
}

// cause prefers why the context ended over what that broke.
func (r *follower) cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// follow reads the job's events to the end, across lost connections. After
// about a minute without the daemon it gives up; the job goes on without us.
func (r *follower) follow(ctx context.Context, path string) error {
	const patience = 12
	return r.c.Follow(ctx, client.FollowOptions{Path: path, OnRetry: func(err error, _ time.Duration) {
		r.lost++
		switch r.lost {
		case 1:
			r.screen.say("lost the connection, trying again")
		case patience:
			r.detach(&hintError{&unreachableError{"", err}, "the job goes on without you: cjm-ctl wait " + r.jobID()})
		}
	}}, func(ev client.Event) error {
		r.lost = 0
		return r.event(ev)
	})
}

// event shows one event of the job's log.
func (r *follower) event(ev client.Event) error {
	if r.a.json {
		return r.a.printEvent(ev)
	}
	switch ev.Kind {
	case "chunk":
		return r.chunk(ev)
	case "progress":
		var p wire.ProgressRecord
		if err := unpack(ev, &p); err != nil {
			return err
		}
		r.screen.progress(p.Progress, p.Message)
	case "log":
		if !r.flags.logs {
			return nil
		}
		var l wire.LogRecord
		if err := unpack(ev, &l); err != nil {
			return err
		}
		r.screen.say(logLine(r.a.talk, l))
	case "gap":
		r.screen.say(r.a.talk.paint(yellow, "some records of this job were dropped: its log was full"))
	case "stream.reset":
		r.screen.say(r.a.talk.paint(yellow, "older records of this job are not kept any more"))
	case client.EventEnd:
	default:
		return r.state(ev)
	}
	return nil
}

// chunk prints what the plugin yielded: the data of the event.
func (r *follower) chunk(ev client.Event) error {
	r.chunks++
	return r.screen.data(func() error { return r.a.printChunk(json.RawMessage(ev.Data)) })
}

// state shows what a job.* record says.
func (r *follower) state(ev client.Event) error {
	// Kinds differ in what they carry; what is missing stays empty.
	var data struct {
		Phase, Sentence string
		Attempt         int
		Error           *wire.JobError
	}
	if err := unpack(ev, &data); err != nil {
		return err
	}
	phase := map[string]string{
		"job.submitted": "queued", "job.held": "held", "job.released": "queued", "job.blocked": "waiting",
		"job.started": "starting", "job.requeued": "queued", "job.cancel_requested": "cancelling",
	}[ev.Kind]
	switch ev.Kind {
	case "job.phase":
		phase = data.Phase
	case "job.started":
		if data.Attempt > 1 && r.chunks > 0 {
			r.screen.say(fmt.Sprintf("attempt %d begins: what was printed so far comes again", data.Attempt))
		}
	case "job.cancel_phase":
		r.screen.say("cancel: " + map[string]string{
			"cooperative": "asking the plugin to stop", "interrupt": "interrupting it", "kill": "killing its worker",
		}[data.Phase])
		return nil
	case "job.requeued":
		if data.Error != nil {
			r.screen.say(r.a.talk.paint(yellow, "attempt failed, trying again: ") + harmless(data.Error.Message, false))
		}
	}
	if phase != "" {
		message := ""
		if ev.Kind == "job.blocked" {
			message = data.Sentence
		}
		r.screen.update(func(v *view) { v.phase, v.fraction, v.message = phase, -1, message })
	}
	return nil
}

// finish prints the result and tells how the job ended.
func (r *follower) finish(ctx context.Context) error {
	job, err := read[wire.Job](r.c.GetJob(ctx, r.jobID(), nil))
	if err != nil {
		return r.cause(ctx, err)
	}
	r.screen.close()
	if r.a.json {
		if err := r.a.printEvent(client.Event{Kind: "job", Data: job.raw}); err != nil {
			return err
		}
		return outcome(job.value)
	}
	j := job.value
	if j.Status == wire.JobStatusCompleted && j.Result != nil && (r.chunks == 0 || r.flags.result) {
		if err := r.a.printResult(ctx, r.c, j.Id); err != nil {
			return r.cause(ctx, err)
		}
	}
	if j.Status != wire.JobStatusCompleted || r.a.talk.terminal {
		r.a.sayOutcome(j)
	}
	return outcome(j)
}

// unpack reads the data of an event.
func unpack(ev client.Event, to any) error {
	if err := json.Unmarshal(ev.Data, to); err != nil {
		return fmt.Errorf("cannot understand event %s: %w", ev.Kind, err)
	}
	return nil
}

// printEvent prints an event of a job's log as one line of JSON.
func (a *app) printEvent(ev client.Event) error {
	if !json.Valid(ev.Data) {
		return errors.New("cannot understand event " + ev.Kind + ": it carries no JSON")
	}
	line, err := json.Marshal(struct {
		ID   string          `json:"id,omitempty"`
		Kind string          `json:"kind"`
		Data json.RawMessage `json:"data"`
	}{ev.ID, ev.Kind, ev.Data})
	if err != nil {
		return fmt.Errorf("cannot print event %s: %w", ev.Kind, err)
	}
	return a.printLine(line)
}
