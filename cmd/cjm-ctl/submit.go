package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// submitFlags are what run and submit have in common.
type submitFlags struct {
	args, kwargs                string
	stream, hold, afterAnyEnd   bool
	priority, maxAttempts       int
	labels, after               []string
	timeout, queueTimeout       time.Duration
	cancelGrace, interruptGrace time.Duration
	id, key, task, method       string
	files                       []string
}

func (s *submitFlags) register(f *pflag.FlagSet) {
	f.StringVar(&s.args, "args", "", "positional arguments: a JSON array, @file or -")
	f.StringVar(&s.kwargs, "kwargs", "", "keyword arguments: a JSON object, @file or -")
	f.StringArrayVar(&s.files, "file", nil, "send a file along, [key=]path: the argument becomes its path on the daemon's machine; may be repeated")
	f.StringVar(&s.task, "task", "", "call this task of the plugin in place of its execute")
	f.StringVar(&s.method, "method", "", "call this method of the task, or of the plugin")
	f.BoolVar(&s.stream, "stream", false, "let the plugin stream its result in chunks")
	f.IntVarP(&s.priority, "priority", "p", 0, "higher is more urgent")
	f.StringArrayVarP(&s.labels, "label", "l", nil, "label, key=value; may be repeated")
	f.DurationVar(&s.timeout, "timeout", 0, "stop the job when it executes longer")
	f.DurationVar(&s.queueTimeout, "queue-timeout", 0, "give up when the job waits longer")
	f.DurationVar(&s.cancelGrace, "cancel-grace", 0, "how long a cancelled job may stop by itself")
	f.DurationVar(&s.interruptGrace, "interrupt-grace", 0, "how long after that until its worker is killed")
	f.IntVar(&s.maxAttempts, "max-attempts", 0, "how often it may be started; 1 gives at-most-once")
	f.StringVar(&s.id, "id", "", "submit under this id; repeating the same job is harmless")
	f.StringVar(&s.key, "key", "", "idempotency key; repeating the same job is harmless")
	f.BoolVar(&s.hold, "hold", false, "submit on hold; cjm-ctl release starts it")
	f.StringArrayVar(&s.after, "after", nil, "start after this job has completed; may be repeated")
	f.BoolVar(&s.afterAnyEnd, "after-any-end", false, "with --after: start also when that job failed or was cancelled")
}

// request makes the body from the flags and the words after the plugin's name.
func (s *submitFlags) request(a *app, plugin string, words []string) (wire.JobRequest, []upload, error) {
	req, err := s.plain(plugin)
	if err != nil {
		return req, nil, err
	}
	dir, err := workdir()
	if err != nil {
		return req, nil, err
	}
	parsed, err := argSource{stdin: a.stdin, dir: dir}.parse(words, s.args, s.kwargs)
	if err != nil {
		return req, nil, err
	}
	files, err := s.uploads(&parsed)
	if err != nil {
		return req, nil, err
	}
	if req.Args, err = json.Marshal(parsed.Args); err != nil {
		return req, nil, fmt.Errorf("cannot write the arguments: %w", err)
	}
	if req.Kwargs, err = json.Marshal(parsed.Kwargs); err != nil {
		return req, nil, fmt.Errorf("cannot write the arguments: %w", err)
	}
	return req, files, nil
}

// plain is the body without arguments.
func (s *submitFlags) plain(plugin string) (wire.JobRequest, error) {
	req := wire.JobRequest{
		Plugin: plugin, Task: s.task, Method: s.method, Stream: s.stream, Priority: s.priority, MaxAttempts: s.maxAttempts,
		Hold: s.hold, DependsOn: s.after,
	}
	if s.id != "" && s.key != "" {
		return req, usagef("cannot use both --id and --key: either of them makes a repeat harmless")
	}
	if s.afterAnyEnd {
		if len(s.after) == 0 {
			return req, usagef("--after-any-end goes with --after JOB")
		}
		req.OnDependencyFailure = wire.JobRequestOnDependencyFailureRun
	}
	for _, d := range []struct {
		flag string
		v    time.Duration
		to   *wire.Duration
	}{
		{"--timeout", s.timeout, &req.RunTimeout}, {"--queue-timeout", s.queueTimeout, &req.QueueTimeout},
		{"--cancel-grace", s.cancelGrace, &req.CancelGrace}, {"--interrupt-grace", s.interruptGrace, &req.InterruptGrace},
	} {
		text, err := duration(d.flag, d.v)
		if err != nil {
			return req, err
		}
		*d.to = text
	}
	for _, l := range s.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return req, usagef("--label takes key=value, not %q", l)
		}
		if req.Labels == nil {
			req.Labels = wire.Labels{}
		}
		req.Labels[key] = value
	}
	return req, nil
}

// duration writes a flag's duration as the API has it; zero is left out.
func duration(flag string, d time.Duration) (wire.Duration, error) {
	switch {
	case d == 0:
		return "", nil
	case d < time.Millisecond:
		return "", usagef("%s is at least 1ms", flag)
	}
	return d.Truncate(time.Millisecond).String(), nil
}

// send submits the job; wait "" does not wait.
func (s *submitFlags) send(ctx context.Context, c *client.API, req wire.JobRequest, wait wire.Duration, files []upload) (reply[wire.Job], error) {
	if len(files) > 0 {
		return s.sendWith(ctx, c, req, wait, files)
	}
	if s.id != "" {
		return read[wire.Job](c.PutJob(ctx, s.id, &wire.PutJobParams{Wait: optional(wait)}, req))
	}
	return read[wire.Job](c.SubmitJob(ctx, &wire.SubmitJobParams{Wait: optional(wait), IdempotencyKey: optional(s.key)}, req))
}

const submitHelp = `Submits a job and prints its id. The job is on disk when the id is printed.

  cjm-ctl submit textstats text='to be or not to be'
  cjm-ctl submit speech audio=@talk.wav --stream --priority 5
  cjm-ctl submit --batch jobs.jsonl

` + argsHelp

func newSubmit(a *app) *cobra.Command {
	var (
		s     submitFlags
		wait  time.Duration
		batch string
	)
	cmd := &cobra.Command{
		Use: "submit PLUGIN [ARG…] [key=value…]", GroupID: groupJobs,
		Short: "Submit a job and print its id", Long: submitHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if batch != "" {
				return count(0, 0)(cmd, args)
			}
			return count(1, -1)(cmd, args)
		},
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if batch != "" {
				return a.submitBatch(ctx, c, batch)
			}
			req, files, err := s.request(a, args[0], args[1:])
			if err != nil {
				return err
			}
			hold, err := duration("--wait", wait)
			if err != nil {
				return err
			}
			job, err := s.send(ctx, c, req, hold, files)
			if err != nil {
				return err
			}
			if err := a.printSubmitted(job, s.id+s.key != "" && wait == 0); err != nil || wait == 0 {
				return err
			}
			a.sayOutcome(job.value)
			return outcome(job.value)
		}),
	}
	s.register(cmd.Flags())
	cmd.Flags().DurationVar(&wait, "wait", 0, "hold until the job has ended, at most this long (up to 10m)")
	cmd.Flags().StringVar(&batch, "batch", "", "submit many jobs in one transaction: a file (or -) with a JSON array or one job a line, as the API takes them")
	return cmd
}

// printSubmitted prints the id. A 200 to a submit that did not wait means that
// the job was known.
func (a *app) printSubmitted(job reply[wire.Job], tellKnown bool) error {
	if tellKnown && job.status == http.StatusOK && !a.json {
		a.say("this job was submitted before")
	}
	if a.json {
		return a.printJSON(job.raw)
	}
	_, err := fmt.Fprintln(a.out.w, job.value.Id)
	return err
}

const batchSize = 1000 // the API's largest batch

func (a *app) submitBatch(ctx context.Context, c *client.API, from string) error {
	items, err := a.readBatch(from)
	if err != nil {
		return err
	}
	if len(items) > batchSize {
		return usagef("%d jobs are more than one batch takes (%d): split the file", len(items), batchSize)
	}
	body, err := json.Marshal(map[string]any{"jobs": items})
	if err != nil {
		return fmt.Errorf("cannot write the batch: %w", err)
	}
	done, err := read[wire.BatchAccepted](c.SubmitBatchWithBody(ctx, "application/json", bytes.NewReader(body)))
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(done.raw)
	}
	w := bufio.NewWriter(a.out.w)
	for _, j := range done.value.Jobs {
		fmt.Fprintln(w, j.Id)
	}
	return w.Flush()
}

// readBatch reads a JSON array of jobs, or jobs one after the other. What is in
// a job is the daemon's to judge.
func (a *app) readBatch(from string) ([]json.RawMessage, error) {
	var data []byte
	var err error
	if from == "-" {
		data, err = io.ReadAll(a.stdin)
	} else {
		data, err = os.ReadFile(from)
	}
	if err != nil {
		return nil, usagef("cannot read the batch: %v", err)
	}
	var items []json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var item json.RawMessage
		err := dec.Decode(&item)
		switch {
		case errors.Is(err, io.EOF) && len(items) == 0:
			return nil, usagef("the batch is empty")
		case errors.Is(err, io.EOF):
			return items, nil
		case err != nil:
			return nil, usagef("cannot read job %d of the batch: %v", len(items)+1, err)
		}
		if trimmed := bytes.TrimSpace(item); len(trimmed) > 0 && trimmed[0] == '[' {
			var many []json.RawMessage
			if err := json.Unmarshal(trimmed, &many); err != nil {
				return nil, usagef("cannot read the batch: %v", err)
			}
			items = append(items, many...)
			continue
		}
		items = append(items, item)
	}
}
