package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/internal/plugins"
)

// Exit codes of every verb; `cjm-ctl help exit-codes` prints them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitJobFailed   = 4
	exitCancelled   = 5
	exitTimeout     = 6
	exitUnreachable = 7
	exitPartly      = 8
	exitInterrupted = 130
)

const exitCodesHelp = `The exit code says how it went:

    0  done; for run and wait: the job completed
    1  an error that none of the following names
    2  the command line is wrong
    3  no such job, plugin, worker or token
    4  the job failed
    5  the job was cancelled
    6  the job had not ended when the time given to wait was over
    7  the daemon cannot be reached
    8  install-all and its kin: something could not be done; the rest was
  130  interrupted (Ctrl-C) before the end was known`

// usageError says that the command line is wrong.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// hintError is an error with a next step for the one at the keyboard.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// unreachableError says that no daemon answered.
// at is "" when the address does not matter.
type unreachableError struct {
	at  string
	err error
}

func (e *unreachableError) Error() string {
	if e.at == "" {
		return "cannot reach cjmd: " + e.err.Error()
	}
	return "cannot reach cjmd at " + e.at + ": " + e.err.Error()
}
func (e *unreachableError) Unwrap() error { return e.err }

// outcomeError ends run and wait when the job did not complete. What is to be
// said about it has been said by the verb.
type outcomeError struct {
	job  string
	code int
}

func (e *outcomeError) Error() string {
	switch e.code {
	case exitJobFailed:
		return "job " + e.job + " failed"
	case exitCancelled:
		return "job " + e.job + " was cancelled"
	}
	return "job " + e.job + " has not ended"
}

// partlyError ends a verb that did some of what it was asked and has said what
// it did not do.
type partlyError struct {
	failed, of int
	what       string
}

func (e *partlyError) Error() string {
	return fmt.Sprintf("%d of %d %s failed", e.failed, e.of, e.what)
}

var errInterrupted = errors.New("interrupted")

// exitCode maps what a verb returned to the process' exit code.
func exitCode(err error) int {
	var (
		usage       *usageError
		outcome     *outcomeError
		partly      *partlyError
		unreachable *unreachableError
		problem     *client.ProblemError
		missing     *plugins.NotFoundError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &outcome):
		return outcome.code
	case errors.As(err, &partly):
		return exitPartly
	case errors.As(err, &unreachable):
		return exitUnreachable
	case errors.As(err, &problem) && problem.Status == http.StatusNotFound, errors.As(err, &missing):
		return exitNotFound
	}
	return exitError
}
