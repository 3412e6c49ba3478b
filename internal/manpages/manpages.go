// Package manpages writes the manual pages of a command line from its verbs,
// so that they never differ from what the program does. The package that is
// built for a distribution calls it (deploy/deb/build); start with Command.
package manpages

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Command is the hidden verb `man DIR`: a page for the program and one for
// each verb, section 1. date is that of the sources, so that the same sources
// give the same pages.
func Command(version string) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages into a directory",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("cannot make the directory of the manual pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := doc.GenManHeader{Section: "1", Source: root.Name() + " " + version, Manual: "cjmd"}
			if err := doc.GenManTree(root, &header, args[0]); err != nil {
				return fmt.Errorf("cannot write the manual pages: %w", err)
			}
			return nil
		},
	}
}
