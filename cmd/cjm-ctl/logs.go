package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newLogs(a *app) *cobra.Command {
	var (
		follow, plugin bool
		tail           int
	)
	cmd := &cobra.Command{
		Use: "logs JOB|PLUGIN", GroupID: groupJobs, Args: count(1, 1),
		Short: "Log lines of a job, or of a plugin's worker",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			resp, err := a.openLog(ctx, c, args[0], plugin, tail, follow)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			return a.printLog(resp)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "stay and print lines as they come")
	f.IntVarP(&tail, "tail", "n", 0, "only the last so many lines (default: all)")
	f.BoolVar(&plugin, "plugin", false, "the name is a plugin's, also where a job has the same id")
	return cmd
}

// openLog asks for the log of a job and, when there is none of that id, of the
// plugin of that name.
func (a *app) openLog(ctx context.Context, c *client.API, name string, plugin bool, tail int, follow bool) (*http.Response, error) {
	if tail < 0 {
		return nil, usagef("--tail is not negative")
	}
	lines := func(_ context.Context, r *http.Request) error {
		r.Header.Set("Accept", "application/x-ndjson")
		return nil
	}
	var missing error
	if !plugin {
		resp, err := checked(c.GetJobLogs(ctx, name, &wire.GetJobLogsParams{Tail: optional(tail), Follow: optional(follow)}, lines))
		var p *client.ProblemError
		if !errors.As(err, &p) || p.Status != http.StatusNotFound && p.Status != http.StatusBadRequest {
			return resp, err
		}
		missing = err
	}
	resp, err := checked(c.GetPluginLogs(ctx, name, &wire.GetPluginLogsParams{Tail: optional(tail), Follow: optional(follow)}, lines))
	if exitCode(err) == exitNotFound && missing != nil {
		return nil, &hintError{fmt.Errorf("there is neither a job nor a plugin %q: %w", name, err), "cjm-ctl jobs and cjm-ctl plugins list them"}
	}
	return resp, err
}

// printLog prints records as they come: lines of NDJSON.
func (a *app) printLog(resp *http.Response) error {
	r := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 1 {
			if err := a.printLogLine(line); err != nil {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return broken(err)
		}
	}
}

func (a *app) printLogLine(line []byte) error {
	if a.json {
		_, err := a.out.w.Write(line)
		return err
	}
	var rec wire.LogRecord
	if err := json.Unmarshal(line, &rec); err != nil {
		return fmt.Errorf("cannot understand a log line of the daemon: %w", err)
	}
	_, err := fmt.Fprintln(a.out.w, logLine(a.out, rec))
	return err
}

// logLine is one record for people.
func logLine(c console, l wire.LogRecord) string {
	level := strings.ToUpper(l.Level)
	if level == "WARNING" {
		level = "WARN"
	}
	level = pad(level, 5)
	switch strings.TrimSpace(level) {
	case "ERROR", "CRITICAL", "FATAL":
		level = c.paint(red, level)
	case "WARN":
		level = c.paint(yellow, level)
	case "DEBUG":
		level = c.paint(dim, level)
	}
	from := ""
	switch {
	case l.Logger != "":
		from = l.Logger + ": "
	case l.Stream == "stderr":
		from = "stderr: "
	}
	return c.paint(dim, l.Time.Local().Format("15:04:05.000")) + " " + level + " " + c.paint(dim, harmless(from, false)) + harmless(l.Message, true)
}
