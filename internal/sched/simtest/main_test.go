package simtest

import (
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

// admissions counts the starts of all simulations of this run.
var admissions atomic.Int64

// Every run draws the same few traces of each kind; make simtest draws many, and
// new ones each time (-rapid.seed=0 -rapid.checks=…).
const (
	fixedSeed   = "20260105"
	fixedChecks = "25"
	// enough is what a whole run has to admit at least.
	enough = 100_000
)

func TestMain(m *testing.M) {
	flag.Parse()
	chosen := make(map[string]bool)
	flag.Visit(func(f *flag.Flag) { chosen[f.Name] = true })
	for name, value := range map[string]string{"rapid.seed": fixedSeed, "rapid.checks": fixedChecks} {
		if chosen[name] {
			continue
		}
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	n := admissions.Load()
	fmt.Printf("simulated admissions: %d\n", n)
	part := chosen["test.run"] || chosen["test.skip"] || chosen["test.list"] || chosen["test.bench"] || chosen["rapid.checks"]
	if code == 0 && !part && n < enough {
		fmt.Fprintf(os.Stderr, "the properties have seen too few admissions: %d, want %d\n", n, enough)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
