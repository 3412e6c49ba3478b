package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"os"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/client"
)

func newResult(a *app) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "result JOB", GroupID: groupJobs, Args: count(1, 1),
		Short: "Print what a job returned",
		Long:  "Prints what a job returned: text as it is, everything else as JSON.\nWith --json or --output the bytes are passed on unchanged.",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if to != "" {
				return a.saveResult(ctx, c, args[0], to)
			}
			return a.printResult(ctx, c, args[0])
		}),
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "write the bytes to this file")
	return cmd
}

// printResult prints a result: JSON for people, other bytes unchanged.
func (a *app) printResult(ctx context.Context, c *client.API, id string) error {
	resp, err := checked(c.GetResult(ctx, id, nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Header.Get("X-Result-Partial") == "true" {
		a.say("this is what job %s had returned before it ended", id)
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/json" || a.json {
		if a.out.terminal && kind != "application/json" && kind != "text/plain" {
			return &hintError{fmt.Errorf("the result is %s, which is not for a terminal", kind), "write it to a file: cjm-ctl result " + id + " -o FILE"}
		}
		_, err := io.Copy(a.out.w, resp.Body)
		if err != nil {
			return broken(err)
		}
		return nil
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return broken(err)
	}
	return a.printValue(json.RawMessage(raw))
}

func (a *app) saveResult(ctx context.Context, c *client.API, id, path string) error {
	resp, err := checked(c.GetResult(ctx, id, nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("cannot write the result: %w", err)
	}
	n, err := io.Copy(f, resp.Body)
	if closing := f.Close(); err == nil && closing != nil {
		return fmt.Errorf("cannot write the result: %w", closing)
	}
	if err != nil {
		return fmt.Errorf("cannot write the result to %s: %w", path, err)
	}
	a.say("%s: %s", path, size(n))
	return nil
}
