//go:build race

package daemontest

// raceEnabled: the daemon is built like the test that drives it.
const raceEnabled = true
