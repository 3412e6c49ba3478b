// Package ecosystem runs published plugins of the Python system that cjmd
// succeeds, unchanged, on the real daemon: each from the manifest that the
// installer of its own time wrote, in an environment with the versions of that
// time, on the native runtime and behind the HTTP server of its own base
// library.
//
// run.sh makes the environments and manifests and starts the tests (build tag
// "ecosystem"); published_test.go says which plugins and what they must answer.
// docs/compatibility.md is written from what was seen.
package ecosystem
