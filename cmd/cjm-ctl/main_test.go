package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"cjm-ctl": main})
}

// leakChecked fails the run when a goroutine outlives the tests.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		println(err.Error())
		return 1
	}
	return code
}

// The scripts run the real program against a fake daemon on a Unix socket.
func TestScripts(t *testing.T) {
	t.Parallel()
	type key struct{}
	daemon := func(ts *testscript.TestScript) *fakeDaemon { return ts.Value(key{}).(*fakeDaemon) }
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			path := filepath.Join(e.WorkDir, "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				return err
			}
			tcp, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Values[key{}] = startFake(e.T().(testing.TB), l, "")
			startFake(e.T().(testing.TB), tcp, "open-sesame")
			e.Setenv("CJMD_SOCKET", path)
			e.Setenv("TCP", tcp.Addr().String())
			e.Setenv("TZ", "UTC")
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else every command takes a second under -race
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// await JOB STATUS waits until the fake daemon has that job so.
			"await": func(ts *testscript.TestScript, _ bool, args []string) {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				f := daemon(ts)
				if !f.until(ctx.Done(), func() bool {
					for _, j := range f.jobs {
						if j.Id == args[0] && (string(j.Status) == args[1] || string(j.Phase) == args[1]) {
							return true
						}
					}
					return false
				}) {
					ts.Fatalf("job %s did not become %s", args[0], args[1])
				}
			},
			// secret NAME VALUE holds what the fake daemon was given.
			"secret": func(ts *testscript.TestScript, _ bool, args []string) {
				daemon(ts).mu.Lock()
				defer daemon(ts).mu.Unlock()
				if got := daemon(ts).secrets[args[0]]; got != args[1] {
					ts.Fatalf("the secret %s is %q", args[0], got)
				}
			},
			// cut makes the daemon end the next event stream after one record.
			"cut": func(ts *testscript.TestScript, _ bool, _ []string) {
				daemon(ts).change(func() { daemon(ts).cut = true })
			},
			// deaf makes every job ignore cancels.
			"deaf": func(ts *testscript.TestScript, _ bool, _ []string) {
				daemon(ts).change(func() { daemon(ts).deaf = true })
			},
		},
	})
}
