// Package e2e tests the whole daemon as its users meet it: the real binaries,
// real Python plugins in real worker processes, and cjm-ctl on the Unix socket
// and over TCP. Each script in testdata runs in its own state directory; the
// commands daemon, plugin and nothing-left are in e2e_test.go. At the end of a
// script the daemon has to stop cleanly and leave no process behind.
package e2e
