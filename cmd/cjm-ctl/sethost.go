package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cjmd/cjmd/internal/plugins/envs"
)

func newSetupHost(a *app) *cobra.Command {
	var p place
	var file, python string
	var yes bool
	cmd := p.flags(&cobra.Command{
		Use: "setup-host", GroupID: groupInstall, Args: count(0, 0),
		Short: "Install the interface libraries of a plugins.yaml into a Python of yours",
		Long:  "Installs the interface_libs of all entries into one interpreter, for a program of yours\nthat uses their types. cjmd itself needs none of them.",
		RunE: a.local(func(ctx context.Context, _ []string) error {
			path, err := a.pluginsFile(file)
			if err != nil {
				return err
			}
			f, err := envs.ReadFile(path)
			if err != nil {
				return err
			}
			reqs := envs.HostRequirements(f)
			if len(reqs) == 0 {
				a.say("no entry of %s has interface_libs: nothing to do", path)
				return nil
			}
			if python, err = a.hostPython(python); err != nil {
				return err
			}
			a.say("to be installed into %s:", python)
			for _, r := range reqs {
				a.say("  %s", r.Text)
			}
			if !yes {
				if err := a.confirm("install them?"); err != nil {
					return err
				}
			}
			in, _, err := a.looker(p)
			if err != nil {
				return err
			}
			return in.SetupHost(ctx, python, reqs, a.talk.w)
		}),
	})
	cmd.Flags().StringVarP(&file, "file", "f", "", "plugins.yaml")
	cmd.Flags().StringVar(&file, "config", "", "the same as --file")
	_ = cmd.Flags().MarkHidden("config") // as the Python system calls it
	cmd.Flags().StringVar(&python, "python", "", "interpreter to install into (default: the virtual environment that is active, else python3)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) hostPython(named string) (string, error) {
	if named == "" && a.getenv("VIRTUAL_ENV") != "" {
		named = a.getenv("VIRTUAL_ENV") + "/bin/python"
	}
	if named == "" {
		named = "python3"
	}
	path, err := exec.LookPath(named)
	if err != nil {
		return "", fmt.Errorf("cannot find the interpreter: %w", err)
	}
	return path, nil
}

// confirm asks the one at the keyboard; nobody there means no.
func (a *app) confirm(question string) error {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &hintError{errors.New("nobody is here to say yes"), "say --yes"}
	}
	fmt.Fprint(a.talk.w, question+" [y/N] ")
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	if s := strings.ToLower(strings.TrimSpace(line)); s != "y" && s != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}
