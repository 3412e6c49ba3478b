package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newToken(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", GroupID: groupRule, Short: "Tokens for access over TCP",
		Args: count(0, 0), RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenCreate(a), newLoginLink(a),
		&cobra.Command{
			Use: "list", Args: count(0, 0), Short: "Tokens, without their secrets",
			RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
				r, err := read[wire.TokenList](c.ListTokens(ctx))
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(r.raw)
				}
				t := &table{cols: []column{{title: "TOKEN", flex: true, min: 8}, {title: "ROLE"}, {title: "CREATED", right: true}, {title: "EXPIRES", right: true}, {title: "LAST USED", right: true}}}
				for _, x := range r.value.Tokens {
					t.row(x.Name, string(x.Role), ago(a.now(), x.CreatedAt), ago(a.now(), x.ExpiresAt), ago(a.now(), x.LastUsedAt))
				}
				return a.printTable(t)
			}),
		},
		&cobra.Command{
			Use: "revoke NAME", Args: count(1, 1), Short: "Make a token useless at once",
			RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
				if _, err := read[struct{}](c.DeleteToken(ctx, args[0])); err != nil {
					return err
				}
				a.say("token %s is revoked", args[0])
				return nil
			}),
		})
	return cmd
}

func newTokenCreate(a *app) *cobra.Command {
	var role string
	var expires time.Duration
	cmd := &cobra.Command{
		Use: "create NAME", Args: count(1, 1), Short: "Create a token and print its secret, once",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if !wire.Role(role).Valid() {
				return usagef("there is no role %q: admin, submit or read", role)
			}
			in, err := duration("--expires", expires)
			if err != nil {
				return err
			}
			r, err := read[wire.TokenCreated](c.CreateToken(ctx, wire.TokenRequest{Name: args[0], Role: wire.Role(role), ExpiresIn: in}))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			a.say("token %s (%s); this is the only time that its secret is shown:", r.value.Token.Name, r.value.Token.Role)
			_, err = fmt.Fprintln(a.out.w, r.value.Secret)
			return err
		}),
	}
	cmd.Flags().StringVar(&role, "role", "submit", "admin, submit or read")
	cmd.Flags().DurationVar(&expires, "expires", 0, "useless after this long, like 720h (default: never)")
	return cmd
}

func newLoginLink(a *app) *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use: "login-link", Args: count(0, 0), Short: "Print a link that logs one browser in, once, within two minutes",
		Long: "Prints an address for a browser on this machine. It works once and for two minutes;\nthe browser stays logged in for a day, or until the daemon or your token ends.",
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			if !wire.Role(role).Valid() {
				return usagef("there is no role %q: admin, submit or read", role)
			}
			r, err := read[wire.LoginCode](c.CreateLoginCode(ctx, wire.LoginCodeRequest{Role: wire.Role(role)}))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			link := r.value.Url
			if link == "" {
				return &hintError{errors.New("no browser can come: the daemon does not listen on TCP"), "set server.listen, like 127.0.0.1:8765"}
			}
			a.say("open this within two minutes; it works once:")
			_, err = fmt.Fprintln(a.out.w, link)
			return err
		}),
	}
	cmd.Flags().StringVar(&role, "role", "admin", "admin, submit or read")
	return cmd
}
