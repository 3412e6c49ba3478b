package daemon

import (
	"testing"

	"github.com/cjmd/cjmd/test/crashtest"
)

// The short version of make fault.
func TestFault_KilledDaemonKeepsItsPromises(t *testing.T) {
	t.Parallel()
	crashtest.Run(t, crashtest.Options{Rounds: 5, Seed: 7, Clients: 3})
}
