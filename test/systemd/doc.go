// Package systemd tests the service as its package installs it, under a real
// systemd that is booted in namespaces (boot.sh). `make systemd-test` builds the
// package and runs it; start with service_test.go, which is one story.
package systemd
