// Package main is cjm-ctl, the command line of cjmd for people and scripts. One
// file holds one verb (or a family of one: load.go has load, unload, reload,
// enable and disable); the verb table below is the list of all of them. Data
// goes to stdout, talk to stderr; --json prints what the daemon answered. It
// sees the daemon only through internal/client; the verbs that install work on
// this machine's files, through internal/plugins/envs. Start with the verb table, then
// run.go for the largest verb, connect.go for how the daemon is found and
// output.go for how things are printed.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/manpages"
)

// Set by the linker (see the Makefile).
var version, commit, date = "devel", "", ""

// verbs is the whole program.
func verbs(a *app) []*cobra.Command {
	return []*cobra.Command{
		newStatus(a), newQueue(a), newJobs(a), newWorkers(a), newIsolation(a), newDevices(a), newMonitor(a),
		newRun(a), newSubmit(a), newJob(a), newWait(a), newResult(a), newFiles(a), newLogs(a), newEvents(a), newExplain(a),
		newCancel(a), newPriority(a), newHold(a), newRelease(a), newRetry(a),
		newPlugins(a), newLoad(a), newUnload(a), newReload(a), newEnable(a), newDisable(a), newConfig(a), newInstances(a), newProfile(a), newSetSecret(a), newListSecrets(a),
		newInstallAll(a), newSetupHost(a), newList(a), newUpgrade(a), newRemove(a), newDoctor(a), newRegenerateManifest(a),
		newPause(a), newResume(a), newDrain(a), newPolicy(a), newPlan(a), newLease(a), newLeases(a), newToken(a), newVersion(a), manpages.Command(version),
	}
}

func main() {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(run(os.Args[1:], world{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		env: os.Environ(), uid: os.Getuid(), now: time.Now, signals: signals,
	}))
}

// world is everything of the process that the program uses.
type world struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            []string // as os.Environ
	uid            int
	now            func() time.Time
	signals        <-chan os.Signal // Ctrl-C and SIGTERM
}

// run is main without the process: it returns the exit code.
func run(args []string, w world) int {
	a := newApp(w)
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(w.stdin)
	root.SetOut(w.stdout)
	root.SetErr(w.stderr)
	err := root.ExecuteContext(context.Background())
	a.complain(err)
	return exitCode(err)
}
