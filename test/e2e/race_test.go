//go:build race

package e2e

// The binaries are built like the tests, so that the race detector sees them.
const raceDetector = true
