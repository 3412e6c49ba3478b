// Package daemon holds the tests of the whole daemon: the real program with real
// Python workers, driven over its sockets as its users drive it. They say what
// is promised, not how it is done. Most share one daemon and have an instance of
// the test plugin for themselves; a test that stops, breaks or reconfigures the
// daemon starts its own. Start with main_test.go, then test/daemontest.
package daemon
