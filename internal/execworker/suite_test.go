package execworker_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/execspec"
	"github.com/cjmd/cjmd/internal/execworker"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/workercheck"
	"github.com/cjmd/cjmd/internal/supervisor/transport/transporttest"
)

func TestMain(m *testing.M) {
	transporttest.Main(m, func(args []string) (int, bool) {
		if len(args) == 0 || args[0] != execworker.Verb {
			return 0, false
		}
		return execworker.Main(args[1:], os.Stderr), true
	})
}

// command is the worker of a program, with this test as the daemon's binary.
func command(t testing.TB, spec execspec.Spec) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := execworker.Command(self, spec)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSuite(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on PATH")
	}
	transporttest.Run(t, transporttest.Target{
		Transport: rpc.New(rpc.Options{}),
		Command: command(t, execspec.Spec{
			Name: "suite", Command: []string{python, "-S", transporttest.Data("suite_program.py")},
			Stdin: execspec.Stdin{JSON: true}, Stdout: execspec.StdoutNDJSON, Result: &execspec.Result{File: "result.json"},
		}),
		Interrupts: true, Program: true,
	})
}

// The checks that any worker must pass, through a real program per call.
func TestWorkerCheck(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	rep, err := workercheck.Run(ctx, workercheck.Options{
		Command: command(t, execspec.Spec{})[:2], Env: append(os.Environ(), "GORACE=atexit_sleep_ms=0"), Out: &out,
		Timeout: time.Minute, // 50 MiB take their time under the race detector
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	var skipped []string
	for _, c := range rep.Checks {
		if c.Status == workercheck.Skip {
			skipped = append(skipped, c.Name)
		}
	}
	// A program is a group of its own, which ends with its job: there is no child of
	// its own in the worker's group to look at.
	if want := []string{"task", "surface", "socket-private"}; !rep.OK() || !slices.Equal(skipped, want) {
		t.Fatalf("%d failed, skipped: %v, want %v", rep.Failed, skipped, want)
	}
}
