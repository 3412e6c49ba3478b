package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newLease(a *app) *cobra.Command {
	var body wire.LeaseRequest
	var lasts time.Duration
	cmd := &cobra.Command{
		Use: "lease SIZE", GroupID: groupRule, Args: count(1, 1),
		Short: "Keep memory for a program that is no plugin: a game, a notebook",
		Long: `Sets memory of an accelerator aside until it is given back:

  cjm-ctl lease 8G --for 2h --note "a game"
  cjm-ctl lease 2G --device host
  cjm-ctl lease end LEASE

Idle workers are evicted for it at once; running jobs end first, and nothing is
started with what is leased. SIZE has a unit: 512M, 8G, 1.5G (powers of 1024).`,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			var err error
			if body.Mb, err = parseSize(args[0]); err != nil {
				return err
			}
			if lasts != 0 {
				body.For = lasts.String()
			}
			r, err := read[wire.Lease](c.CreateLease(ctx, body))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			a.sayLease(r.value)
			_, err = fmt.Fprintln(a.out.w, r.value.Id)
			return err
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&lasts, "for", 0, "how long; without it until lease end")
	f.StringVar(&body.Device, "device", "", "UUID or index of an accelerator, or host (default: the one with the most left)")
	f.StringVar(&body.Note, "note", "", "why, for those who wonder")
	cmd.AddCommand(&cobra.Command{
		Use: "end LEASE…", Args: count(1, -1), Short: "Give leased memory back to the jobs",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			for _, id := range args {
				if _, err := read[struct{}](c.EndLease(ctx, id)); err != nil {
					return err
				}
				a.say("lease %s is over", id)
			}
			return nil
		}),
	})
	return cmd
}

func newLeases(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "leases", GroupID: groupRule, Args: count(0, 0), Short: "What is leased, by whom and until when",
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			r, err := read[wire.LeaseList](c.ListLeases(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			if len(r.value.Leases) == 0 {
				a.say("nothing is leased")
				return nil
			}
			t := &table{cols: []column{{title: "LEASE", flex: true, min: 26}, {title: "DEVICE", flex: true, min: 6}, {title: "SIZE", right: true}, {title: "MISSING", right: true},
				{title: "HOLDER", flex: true, min: 6}, {title: "ENDS", right: true}, {title: "NOTE", flex: true, min: 6}}}
			for _, l := range r.value.Leases {
				missing, ends := "", "when told"
				if l.MissingMb > 0 {
					missing = sizeMB(l.MissingMb)
				}
				if !l.ExpiresAt.IsZero() {
					ends = ago(a.now(), l.ExpiresAt)
				}
				t.row(l.Id, l.Device, sizeMB(l.Mb), missing, l.Holder, ends, l.Note)
			}
			return a.printTable(t)
		}),
	}
}

func (a *app) sayLease(l wire.Lease) {
	until := "until cjm-ctl lease end " + l.Id
	if !l.ExpiresAt.IsZero() {
		until = "until " + l.ExpiresAt.Local().Format("15:04 on 2 January")
	}
	a.say("%s of %s are yours %s", sizeMB(l.Mb), l.Device, until)
	if l.MissingMb > 0 {
		a.say("%s of it are still held by %s; cjm-ctl leases shows when all is there", sizeMB(l.MissingMb), strings.Join(l.Holders, ", "))
	}
}

// parseSize reads an amount of memory with its unit, in MiB.
func parseSize(text string) (float64, error) {
	number := strings.TrimRight(text, "BbIiKkMmGgTt")
	unit := strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(text[len(number):]), "b"), "i"))
	n, err := strconv.ParseFloat(number, 64)
	factor := map[string]float64{"K": 1.0 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}[unit]
	if err != nil || factor == 0 || math.IsInf(n, 0) || !(n > 0) {
		return 0, usagef("%q is no amount of memory: write it like 512M or 8G", text)
	}
	return n * factor, nil
}
