//go:build fault

package fault

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/test/crashtest"
	"github.com/cjmd/cjmd/test/daemontest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	daemontest.Cleanup()
	if err := goleak.Find(); code == 0 && err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	os.Exit(code)
}

// number reads a variable of the environment; fallback when it is not set.
func number(t *testing.T, name string, fallback uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return fallback
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("cannot use %s: %v", name, err)
	}
	return n
}

// 200 times SIGKILL at random moments under load. CJM_FAULT_ROUNDS and
// CJM_FAULT_SEED choose how often and what.
func TestKill_NothingPromisedIsLost(t *testing.T) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	seed := number(t, "CJM_FAULT_SEED", binary.LittleEndian.Uint64(b[:])>>32)
	crashtest.Run(t, crashtest.Options{Rounds: int(number(t, "CJM_FAULT_ROUNDS", 200)), Seed: seed})
}
