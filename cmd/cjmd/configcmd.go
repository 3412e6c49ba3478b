package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/config"
)

// configCommand is `cjmd config check|show`.
func configCommand(env []string) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check or show the configuration", Args: cobra.NoArgs}

	check := &cobra.Command{
		Use: "check", Short: "Read the configuration as the daemon would and say what is wrong with it",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Options{Env: env, Flags: c.Flags()})
			if err != nil {
				return err
			}
			file := cfg.File()
			if file == "" {
				file = "no file, defaults and environment"
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "ok: %s\n", file)
			return err
		},
	}
	config.AddFlags(check.Flags())

	var asJSON bool
	show := &cobra.Command{
		Use: "show", Short: "Print every value and where it came from",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Options{Env: env, Flags: c.Flags()})
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(cfg.Sources())
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "KEY\tVALUE\tFROM")
			for _, s := range cfg.Sources() {
				fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, s.Value, s.Origin)
			}
			return w.Flush()
		},
	}
	config.AddFlags(show.Flags())
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON")

	c.AddCommand(check, show)
	return c
}
