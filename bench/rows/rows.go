// Package rows holds the benchmarks, one file each. Every row measures
// something of the real daemon and, in the same run, what it is compared with.
// A row owns nothing: what it starts it ends before it returns. Start with List.
package rows

import (
	"context"

	"github.com/cjmd/cjmd/bench/harness"
)

// Row is one benchmark.
type Row struct {
	Name string
	Run  func(context.Context, *harness.Bench) ([]harness.Result, error)
}

// List is every row, in the order of the table.
func List() []Row {
	return []Row{
		{"rpc", rpc},
		{"submit", submit},
		{"stream", stream},
		{"start", start},
		{"cancel", cancelRow},
		{"footprint", footprint},
		{"sched", schedule},
		{"simulate", simulate},
		{"settle", settle},
		{"idle", idle},
		{"older", older},
		{"install", install},
	}
}
