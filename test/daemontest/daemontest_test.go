package daemontest_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/test/daemontest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	daemontest.Cleanup()
	if err := goleak.Find(); code == 0 && err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	os.Exit(code)
}

func TestDaemon_ServesRestartsAndLeavesNothing(t *testing.T) {
	d := daemontest.Start(t, daemontest.Options{})
	s := d.Session(t)
	var pid int
	s.Completed(daemontest.Op("pid"), &pid)
	if !daemontest.Alive(pid) {
		t.Fatalf("the worker %d does not live", pid)
	}
	d.Restart(t)
	s.Completed(daemontest.Op("pid"), &pid)
	d.Kill(t)
	if daemontest.Alive(pid) {
		t.Errorf("the worker %d outlives its daemon", pid)
	}
}
