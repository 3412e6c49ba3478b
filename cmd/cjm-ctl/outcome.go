package main

import (
	"fmt"
	"strings"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// outcome is what the end of a job means for the exit code.
func outcome(j wire.Job) error {
	switch j.Status {
	case wire.JobStatusCompleted:
		return nil
	case wire.JobStatusFailed:
		return &outcomeError{j.Id, exitJobFailed}
	case wire.JobStatusCancelled:
		return &outcomeError{j.Id, exitCancelled}
	}
	return &outcomeError{j.Id, exitTimeout}
}

// sayOutcome tells how a job ended, or that it has not, on stderr.
func (a *app) sayOutcome(j wire.Job) {
	for _, line := range outcomeLines(a.talk, j, a.took(j)) {
		fmt.Fprintln(a.talk.w, line)
	}
}

// outcomeLines is the end of a job for people, ready to print.
func outcomeLines(c console, j wire.Job, took string) []string {
	head := "job " + j.Id + " "
	if took != "" {
		took = " after " + took
	}
	switch j.Status {
	case wire.JobStatusCompleted:
		return []string{c.paint(green, head+"completed") + took}
	case wire.JobStatusCancelled:
		line := c.paint(yellow, head+"was cancelled") + took
		if j.CancelReason != "" {
			line += ": " + harmless(j.CancelReason, false)
		}
		return append([]string{line}, partialHint(j)...)
	case wire.JobStatusFailed:
		return append(failureLines(c, c.paint(red, head+"failed")+took, j), partialHint(j)...)
	}
	line := head + "is " + status(j)
	if j.Block != nil {
		line += ": " + harmless(j.Block.Sentence, false)
	}
	return []string{line}
}

func partialHint(j wire.Job) []string {
	if j.Result == nil || j.Result.Size == 0 {
		return nil
	}
	return []string{"  what it returned so far: cjm-ctl result " + j.Id}
}

// failureLines tells why a job failed, as much as a person wants to see.
func failureLines(c console, head string, j wire.Job) []string {
	e := j.Error
	if e == nil {
		return []string{head}
	}
	out := []string{head + " (" + string(e.Category) + "): " + harmless(e.Message, false)}
	if len(e.Fields) > 0 {
		out = append(out, "  invalid: "+harmless(strings.Join(e.Fields, ", "), false))
	}
	for _, s := range e.Shortfall {
		out = append(out, "  "+harmless(shortfall(s), false))
	}
	block := func(text string) {
		for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
			out = append(out, "  "+c.paint(dim, "│ ")+harmless(line, false))
		}
	}
	if e.Traceback != "" {
		block(e.Traceback)
	} else if len(e.StderrTail) > 0 {
		out = append(out, "  the worker's last lines:")
		block(strings.Join(e.StderrTail, "\n"))
	}
	if j.MaxAttempts > 1 && j.Attempt > 1 {
		out = append(out, fmt.Sprintf("  it was attempt %d of %d", j.Attempt, j.MaxAttempts))
	}
	return append(out, "  its log: cjm-ctl logs "+j.Id)
}

func shortfall(s wire.Shortfall) string {
	what := s.Resource
	if s.Device != "" {
		what += " of " + s.Device
	}
	if s.NeededMb == 0 && s.AvailableMb == 0 {
		return "lacks " + what
	}
	return fmt.Sprintf("needs %s of %s, there is %s", sizeMB(s.NeededMb), what, sizeMB(s.AvailableMb))
}
