// Package inside holds what the shim of a sandbox does to itself before it starts
// the worker: a file tree of its own (files.go), Landlock, a seccomp filter,
// capabilities, a network without the host's. Mounts belong to the process' mount
// namespace, which must be a fresh one; the rest belongs to the calling thread,
// which must be locked and starts the worker afterwards. Each step returns an
// error that says what is missing; nothing is weaker in silence. Start with Files.
package inside
