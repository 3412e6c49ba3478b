package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

const setSecretHelp = `Gives a plugin a secret: an environment variable of its workers that the daemon
keeps in a file of its own and shows to nobody. Asked for without echo, or read
from a pipe:

  cjm-ctl set-secret speech API_KEY
  pass show speech | cjm-ctl set-secret speech API_KEY

Workers get it when they start: cjm-ctl reload PLUGIN.`

const maxSecret = 64 << 10

func newSetSecret(a *app) *cobra.Command {
	var value string
	var remove bool
	cmd := &cobra.Command{
		Use: "set-secret PLUGIN NAME", GroupID: groupPlugins, Args: count(2, 2),
		Short: "Give a plugin a secret", Long: setSecretHelp,
	}
	cmd.RunE = a.do(func(ctx context.Context, c *client.API, args []string) error {
		if remove {
			if _, err := read[struct{}](c.DeleteSecret(ctx, args[0], args[1])); err != nil {
				return err
			}
			a.say("%s of %s is forgotten", args[1], args[0])
			return nil
		}
		if !cmd.Flags().Changed("value") {
			var err error
			if value, err = a.askSecret(args[1]); err != nil {
				return err
			}
		}
		if _, err := read[struct{}](c.PutSecret(ctx, args[0], args[1], wire.SecretRequest{Value: value})); err != nil {
			return err
		}
		a.say("%s of %s is set; its worker gets it with: cjm-ctl reload %s", args[1], args[0], args[0])
		return nil
	})
	cmd.Flags().StringVar(&value, "value", "", "the secret itself (others see it here, and your shell remembers it)")
	cmd.Flags().BoolVar(&remove, "delete", false, "forget it instead")
	return cmd
}

// askSecret reads a secret without showing it.
func (a *app) askSecret(name string) (string, error) {
	var raw []byte
	var err error
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.talk.w, "%s: ", name)
		raw, err = term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.talk.w)
	} else {
		raw, err = io.ReadAll(io.LimitReader(a.stdin, maxSecret+1))
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %w", err)
	}
	if len(raw) > maxSecret {
		return "", fmt.Errorf("cannot set the secret: it is longer than %d bytes", maxSecret)
	}
	// What a pipe ends with belongs to the pipe.
	value := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if value == "" {
		return "", errors.New("cannot set the secret: nothing was given")
	}
	return value, nil
}

func newListSecrets(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list-secrets [PLUGIN]", GroupID: groupPlugins, Args: count(0, 1),
		Short: "Names of secrets that plugins want or have, never their values",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			names := args
			if len(args) == 0 {
				p, err := read[wire.PluginList](c.ListPlugins(ctx, &wire.ListPluginsParams{}))
				if err != nil {
					return err
				}
				for _, x := range p.value.Plugins {
					if x.ShadowedBy == "" && x.Error == "" {
						names = append(names, x.Name)
					}
				}
			}
			lists := make([]wire.SecretList, 0, len(names))
			for _, n := range names {
				r, err := read[wire.SecretList](c.ListSecrets(ctx, n))
				if err != nil {
					return err
				}
				if len(args) == 1 || len(r.value.Secrets) > 0 {
					lists = append(lists, r.value)
				}
			}
			return a.showSecrets(lists)
		}),
	}
}

func (a *app) showSecrets(lists []wire.SecretList) error {
	t := &table{cols: []column{{title: "PLUGIN", flex: true, min: 10}, {title: "SECRET", flex: true, min: 10}, {title: "STATE"}}}
	t.paint = func(col int, text, padded string) string {
		if col == 2 {
			return a.out.paintWord(map[string]string{"set": "ok", "missing": "failed"}[text], padded)
		}
		return padded
	}
	for _, l := range lists {
		for _, s := range l.Secrets {
			state := "set"
			if !s.Set {
				state = "not set"
				if s.Required {
					state = "missing"
				}
			}
			t.row(l.Plugin, s.Name, state)
		}
	}
	if len(t.rows) == 0 && !a.json {
		a.say("there are no secrets, and no plugin asks for one")
		return nil
	}
	return a.printTableOr(t, map[string]any{"plugins": lists})
}
