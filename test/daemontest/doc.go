// Package daemontest runs the real daemon for tests: it builds cjmd, starts it
// on a socket, a port and a state directory of its own with small plugins of its
// own (plugins/), waits for what the daemon itself tells, and ends it politely or
// with SIGKILL. After each end it looks for processes that were left behind.
// Start with Start, then Daemon.Session, which has the calls tests make all the
// time. A Daemon belongs to one goroutine, Sessions to any number.
package daemontest
