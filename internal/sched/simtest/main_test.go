package simtest

import (
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	_ "pgregory.net/rapid" // its flags, also where no property is built
)

// admissions counts the starts of all simulations of this run.
var admissions atomic.Int64

// fixedSeed makes every run draw the same traces; -rapid.seed=0 draws new ones,
// and -rapid.checks more of them.
const fixedSeed = "20260105"

func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "rapid.seed" })
	if !chosen {
		if err := flag.Set("rapid.seed", fixedSeed); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	fmt.Printf("simulated admissions: %d\n", admissions.Load())
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
