// Package fault holds the long tests with faults, behind the build tag fault:
// what they do is in test/crashtest, and a short version runs in test/e2e.
package fault
