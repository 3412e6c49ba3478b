// Package envs makes the environments of plugins: it reads plugins.yaml (File),
// decides what each environment needs (Installer.Plan) and does it
// (Installer.Install) with one of several tools (Backend), asks the installed
// code what it is (introspection) and writes its manifest. It never goes
// through a shell, and it knows no daemon.
//
// An environment is a link <Envs>/<name> to a finished build beside it. A build
// is made at the path where it stays, because scripts in it hold that path, and
// becomes the environment by a rename of the link when everything in it worked.
// So an interrupted installation leaves the old environment as it was, and a
// worker that runs keeps the files it started from.
//
// An Installer may be used from any goroutine; two processes at work on one
// environment are kept apart by a lock file. Start with File, then Installer.
package envs
