package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

const eventsHelp = `Prints the newest events of the journal: every change of jobs, workers,
plugins, queue, monitors and scheduler, numbered without gaps. With -f it stays
and prints what happens, also across a restart of the daemon.

  cjm-ctl events -f --kind job.
  cjm-ctl events --after 1200`

// eventFlags choose which events are shown.
type eventFlags struct {
	follow, samples bool
	kinds           []string
	job, plugin     string
	after           int64
	tail            int64
}

func newEvents(a *app) *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use: "events", GroupID: groupLook, Args: count(0, 0), Short: "What happened, and with -f what happens", Long: eventsHelp,
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error { return a.events(ctx, c, f) }),
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.follow, "follow", "f", false, "stay and print what happens")
	fs.StringArrayVar(&f.kinds, "kind", nil, `only this kind; one that ends in "." is a prefix (job.); may be repeated`)
	fs.StringVar(&f.job, "job", "", "only events of this job")
	fs.StringVar(&f.plugin, "plugin", "", "only events of this plugin (instance id)")
	fs.Int64Var(&f.after, "after", -1, "begin after this number; 0 begins with the oldest that is kept")
	fs.Int64VarP(&f.tail, "tail", "n", 20, "begin so many numbers before the newest")
	fs.BoolVar(&f.samples, "samples", false, "with -f: samples of the monitor, too")
	return cmd
}

var errShownAll = errors.New("shown")

func (a *app) events(ctx context.Context, c *client.API, f eventFlags) error {
	page, err := read[wire.JobPage](c.ListJobs(ctx, &wire.ListJobsParams{Limit: new(1)}))
	if err != nil {
		return err
	}
	newest := page.value.ReadAt
	if f.after < 0 {
		f.after = max(0, newest-f.tail)
	}
	if !f.follow && f.after >= newest {
		return nil
	}
	o := client.FollowOptions{Path: "/v1/events", After: strconv.FormatInt(f.after, 10), OnRetry: a.sayLost()}
	if f.follow {
		o.Query = f.query()
	} else {
		// The end is known by its number, so every event has to be seen: the
		// filters are applied here.
		o.Once = true
	}
	err = c.Follow(ctx, o, func(ev client.Event) error {
		return a.showEvent(ev, f, newest)
	})
	if errors.Is(err, errShownAll) {
		return nil
	}
	return err
}

// sayLost tells once about each row of failed connections.
func (a *app) sayLost() func(error, time.Duration) {
	var last time.Time
	return func(error, time.Duration) {
		if now := a.now(); now.Sub(last) > time.Minute {
			a.say("lost the connection, trying again")
			last = now
		}
	}
}

func (f eventFlags) query() url.Values {
	q := url.Values{"kind": f.kinds}
	if f.job != "" {
		q.Set("job", f.job)
	}
	if f.plugin != "" {
		q.Set("plugin", f.plugin)
	}
	if f.samples {
		q.Set("samples", "true")
	}
	return q
}

func (f eventFlags) matches(e wire.JournalEvent) bool {
	if f.job != "" && e.Job != f.job || f.plugin != "" && e.Plugin != f.plugin {
		return false
	}
	for _, k := range f.kinds {
		if e.Kind == k || strings.HasSuffix(k, ".") && strings.HasPrefix(e.Kind, k) {
			return true
		}
	}
	return len(f.kinds) == 0
}

// showEvent prints one event; errShownAll ends the reading when not following.
func (a *app) showEvent(ev client.Event, f eventFlags, newest int64) error {
	switch ev.Kind {
	case client.EventEnd:
		return nil
	case "stream.reset":
		var r wire.StreamReset
		if err := unpack(ev, &r); err != nil {
			return err
		}
		a.say("older events are not kept any more; the oldest is %d", r.Oldest)
		if !f.follow && r.Oldest > newest {
			return errShownAll
		}
		return nil
	case "system.sample":
		return a.showSample(ev)
	}
	var e wire.JournalEvent
	if err := unpack(ev, &e); err != nil {
		return err
	}
	var err error
	switch {
	case !f.follow && !f.matches(e):
	case a.json:
		err = a.printLine(ev.Data)
	default:
		_, err = fmt.Fprintln(a.out.w, a.eventLine(e))
	}
	if err == nil && !f.follow && e.Seq >= newest {
		return errShownAll
	}
	return err
}

func (a *app) eventLine(e wire.JournalEvent) string {
	about := strings.TrimSpace(e.Plugin + " " + e.Job)
	data := notEmpty(string(e.Data), "{}")
	line := fmt.Sprintf("%s %s %s", a.out.paint(dim, fmt.Sprintf("%6d %s", e.Seq, e.At.Local().Format("15:04:05.000"))),
		a.out.paint(eventColour(e.Kind), pad(harmless(e.Kind, false), 20)), harmless(about, false))
	if data != "" {
		line += " " + a.out.paint(dim, harmless(data, false))
	}
	return line
}

func eventColour(kind string) string {
	switch kind {
	case "job.completed":
		return green
	case "job.failed":
		return red
	case "job.cancelled", "job.requeued":
		return yellow
	}
	return cyan
}

func (a *app) showSample(ev client.Event) error {
	if a.json {
		return a.printEvent(ev)
	}
	var s wire.System
	if err := unpack(ev, &s); err != nil {
		return err
	}
	var parts []string
	for _, f := range systemFacts(s) {
		parts = append(parts, f.name+" "+f.value)
	}
	_, err := fmt.Fprintln(a.out.w, a.out.paint(dim, "       "+s.At.Local().Format("15:04:05.000"))+" "+pad("system.sample", 20)+" "+harmless(strings.Join(parts, "; "), false))
	return err
}
