package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/client"
)

// app is one run of the program: the world, the flags of every verb, and the
// two consoles.
type app struct {
	world
	out, talk console

	json             bool
	noColor          bool
	host, socket     string
	token, tokenFile string
}

func newApp(w world) *app {
	a := &app{world: w}
	a.out, a.talk = newConsole(w.stdout), newConsole(w.stderr)
	return a
}

// getenv reads the environment; the last entry of a name wins.
func (a *app) getenv(name string) string {
	value := ""
	for _, kv := range a.env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "cjm-ctl",
		Short: "Talk to cjmd, the job server of this machine",
		Long: `cjm-ctl talks to cjmd, the job server of this machine.

  cjm-ctl run textstats text='to be or not to be'   submit a job and follow it
  cjm-ctl status                                    the daemon at a glance
  cjm-ctl logs -f JOB                               what a job says

A local daemon is found by itself: its Unix socket first, then its loopback
address with the token of its state directory. --socket, --host and --token
(or CJMD_SOCKET, CJMD_HOST, CJMD_TOKEN) name another one.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			err := usagef("there is no verb %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return &hintError{err, "did you mean: cjm-ctl " + strings.Join(near, ", cjm-ctl ")}
			}
			return &hintError{err, "cjm-ctl help lists the verbs"}
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.settle() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &hintError{usagef("%v", err), cmd.CommandPath() + " --help shows its flags"}
	})
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print data as JSON (streams: one document a line)")
	f.BoolVar(&a.noColor, "no-color", false, "no colours; NO_COLOR does the same")
	f.StringVar(&a.host, "host", "", "address of the daemon, host:port or URL")
	f.StringVar(&a.socket, "socket", "", "Unix socket of the daemon")
	f.StringVar(&a.token, "token", "", "token for --host (others see it here: better CJMD_TOKEN)")
	f.StringVar(&a.tokenFile, "token-file", "", "file with the token for --host")
	root.AddGroup(&cobra.Group{ID: groupLook, Title: "Look:"}, &cobra.Group{ID: groupJobs, Title: "Jobs:"},
		&cobra.Group{ID: groupPlugins, Title: "Plugins:"}, &cobra.Group{ID: groupInstall, Title: "Install:"}, &cobra.Group{ID: groupRule, Title: "Rule:"})
	root.AddCommand(verbs(a)...)
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesHelp})
	root.SetHelpCommandGroupID(groupRule)
	root.SetCompletionCommandGroupID(groupRule)
	root.SuggestionsMinimumDistance = 2
	completions(a, root)
	return root
}

// Groups of the verbs in the help.
const (
	groupLook    = "look"
	groupJobs    = "jobs"
	groupPlugins = "plugins"
	groupInstall = "install"
	groupRule    = "rule"
)

// settle applies the flags that change how things are printed.
func (a *app) settle() error {
	plain := a.noColor || a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb"
	a.out.color = a.out.terminal && !plain && !a.json
	a.talk.color = a.talk.terminal && !plain
	return nil
}

// count checks how many arguments a verb got; most < 0 means any number.
func count(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		var err error
		switch {
		case len(args) < least:
			err = usagef("%s needs more: %s", cmd.CommandPath(), cmd.UseLine())
		case most >= 0 && len(args) > most:
			err = usagef("%s does not take %q: %s", cmd.CommandPath(), args[most], cmd.UseLine())
		default:
			return nil
		}
		return &hintError{err, cmd.CommandPath() + " --help explains it"}
	}
}

// verb is what a verb does once the daemon is found.
type verb func(ctx context.Context, c *client.API, args []string) error

// do makes a verb a cobra RunE: it finds the daemon, and the first Ctrl-C ends
// the context with errInterrupted.
func (a *app) do(v verb) func(*cobra.Command, []string) error { return a.local(a.doQuiet(v)) }

// local is do for verbs that work without a daemon.
func (a *app) local(v func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithCancelCause(cmd.Context())
		watch := make(chan struct{})
		go func() {
			defer close(watch)
			select {
			case <-a.signals:
				cancel(errInterrupted)
			case <-ctx.Done():
			}
		}()
		defer func() { cancel(nil); <-watch }()
		err := v(ctx, args)
		if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
			return errInterrupted
		}
		return err
	}
}

// doQuiet is do for verbs that handle Ctrl-C themselves.
func (a *app) doQuiet(v verb) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		err = v(ctx, c, args)
		if cause := context.Cause(ctx); err != nil && errors.Is(cause, errInterrupted) {
			return errInterrupted
		}
		return err
	}
}

// complain tells the one at the keyboard what went wrong and what to do next.
func (a *app) complain(err error) {
	var outcome *outcomeError
	var partly *partlyError
	if err == nil || errors.As(err, &outcome) || errors.As(err, &partly) || errors.Is(err, errInterrupted) {
		return // told by the verb, or known to who pressed the key
	}
	if a.json {
		if raw := problemJSON(err); raw != nil {
			fmt.Fprintf(a.talk.w, "%s\n", raw)
			return
		}
	}
	lines := []string{a.talk.paint(red, "cjm-ctl: ") + harmless(sentence(err), false)}
	for _, l := range problemLines(err) {
		lines = append(lines, "  "+harmless(l, false))
	}
	if next := nextStep(err); next != "" {
		lines = append(lines, a.talk.paint(bold, "→ ")+harmless(next, false))
	}
	fmt.Fprintln(a.talk.w, strings.Join(lines, "\n"))
}

// workdir is where relative paths of arguments start.
func workdir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("cannot tell the current directory: %w", err)
	}
	return dir, nil
}
