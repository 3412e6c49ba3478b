package rpc_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
	"github.com/cjmd/cjmd/internal/supervisor/transport/transporttest"
)

func TestSuite_TestWorker(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "testworker")
	cmd := exec.Command("go", "build", "-o", bin, "./internal/supervisor/testworker")
	cmd.Dir = transporttest.Data("../../../../..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// In a group of its own: the program must be there until the last has run.
	t.Run("all", func(t *testing.T) {
		transporttest.Run(t, transporttest.Target{Transport: rpc.New(rpc.Options{}), Command: []string{bin}, Interrupts: true})
	})
}

func TestSuite_PythonRuntime(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on PATH")
	}
	transporttest.Run(t, transporttest.Target{
		Transport: rpc.New(rpc.Options{}), Command: []string{python, "-m", "cjmworker"},
		Env:    []string{"PYTHONPATH=" + transporttest.Data("../../../../../sdk/python") + string(os.PathListSeparator) + transporttest.Data("")},
		Module: "suite_plugin", Class: "SuitePlugin", Interrupts: true,
	})
}
