package simserve_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/simtest"
	"github.com/cjmd/cjmd/internal/simserve"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == simserve.Verb {
		os.Exit(simserve.Worker(os.Environ(), os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

const traceText = `
machine: {devices: [{name: card, total_mb: 1000}]}
plugins:
  small: {resident_mb: 400, execute_mb: 200, load: 5ms, run: 10ms, concurrency: 2, release_lag: 50ms}
  large: {resident_mb: 800, load: 5ms, run: 5ms, needs: unknown, devices: 1}
  text: {run: 1ms}
arrivals:
  - {plugin: small, count: 3, every: 1ms, submitter: anna, priority: 4}
`

// machine serves the trace above until the test ends.
func machine(t *testing.T) (*simserve.Machine, string) {
	t.Helper()
	tr, err := simtest.ParseTrace([]byte(traceText))
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "sim") // t.TempDir may be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m, err := simserve.New(simserve.Options{Trace: tr, Dir: dir, Executable: "/opt/cjmd"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, m.Close())
	})
	return m, dir
}

// process speaks to the driver as a worker does.
type process struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

func dial(t *testing.T, dir string) *process {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(dir, "driver.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &process{t: t, conn: conn, in: bufio.NewScanner(conn)}
}

func (p *process) ask(r simserve.Request) {
	p.t.Helper()
	line, err := json.Marshal(r)
	require.NoError(p.t, err)
	_, err = p.conn.Write(append(line, '\n'))
	require.NoError(p.t, err)
}

func (p *process) answer() simserve.Answer {
	p.t.Helper()
	require.NoError(p.t, p.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	require.True(p.t, p.in.Scan(), "the driver hung up: %v", p.in.Err())
	var a simserve.Answer
	require.NoError(p.t, json.Unmarshal(p.in.Bytes(), &a))
	return a
}

func (p *process) load(plugin string) simserve.Answer {
	p.t.Helper()
	p.ask(simserve.Request{Op: "load", Plugin: plugin, Name: plugin, Devices: "GPU-0"})
	return p.answer()
}

func TestDriver_LoadsRunsAndTakesMemoryBack(t *testing.T) {
	m, dir := machine(t)
	p := dial(t, dir)
	require.Equal(t, simserve.Answer{Op: "load"}, p.load("small"))
	s, ok := m.Read("sim")
	require.True(t, ok)
	require.Equal(t, 600*resource.MiB, s.Devices[0].Free)
	require.Equal(t, os.Getpid(), s.Processes[0].PID, "the monitor lists the process that asked")

	p.ask(simserve.Request{Op: "usage"})
	require.Equal(t, map[string]int64{"GPU-0": int64(400 * resource.MiB)}, p.answer().Devices)

	p.ask(simserve.Request{Op: "run", Call: "j", Seconds: 0.02})
	require.Equal(t, simserve.Answer{Op: "run", Call: "j", Begun: true, Seconds: 0.02}, p.answer())
	require.Equal(t, simserve.Answer{Op: "run", Call: "j"}, p.answer())

	require.NoError(t, p.conn.Close()) // the process is gone
	require.Eventually(t, func() bool { return m.Free("GPU-0") == 1000*resource.MiB }, 10*time.Second, time.Millisecond)
}

func TestDriver_FullDeviceIsAnError(t *testing.T) {
	_, dir := machine(t)
	first, second := dial(t, dir), dial(t, dir)
	require.Empty(t, first.load("small").Error)
	a := second.load("large")
	require.True(t, a.OOM)
	require.NotEmpty(t, a.Error)
}

func TestDriver_CancelEndsARun(t *testing.T) {
	_, dir := machine(t)
	p := dial(t, dir)
	require.Empty(t, p.load("small").Error)
	p.ask(simserve.Request{Op: "run", Call: "j", Seconds: 3600})
	require.True(t, p.answer().Begun)
	p.ask(simserve.Request{Op: "cancel", Call: "j"})
	a := p.answer()
	require.True(t, a.Stopped)
	require.Equal(t, "j", a.Call)
}

func TestDriver_RefusesWhatMakesNoSense(t *testing.T) {
	_, dir := machine(t)
	p := dial(t, dir)
	p.ask(simserve.Request{Op: "run", Call: "j"})
	require.NotEmpty(t, p.answer().Error)
	require.NotEmpty(t, p.load("nobody").Error)
	require.Empty(t, p.load("text").Error)
	p.ask(simserve.Request{Op: "dance"})
	require.NotEmpty(t, p.answer().Error)
}

func TestManifests_SayWhatTheTraceLetsThemSay(t *testing.T) {
	m, _ := machine(t)
	read := func(name string) map[string]any {
		body, err := os.ReadFile(filepath.Join(m.PluginDir(), name+".json"))
		require.NoError(t, err)
		var out map[string]any
		require.NoError(t, json.Unmarshal(body, &out))
		return out
	}
	small := read("small")
	require.Equal(t, []any{"/opt/cjmd", simserve.Verb}, small["command"])
	require.Equal(t, map[string]any{"requires_gpu": true, "min_gpu_vram_mb": 800.0}, small["resources"])
	require.Equal(t, map[string]any{"requires_gpu": true}, read("large")["resources"], "its need is unknown")
	require.Equal(t, map[string]any{"requires_gpu": false}, read("text")["resources"])
}

func TestSubmit_BringsTheJobsInTheirOrder(t *testing.T) {
	m, _ := machine(t)
	var got []simtest.Submission
	require.NoError(t, m.Submit(t.Context(), func(_ context.Context, s simtest.Submission) error {
		got = append(got, s)
		return nil
	}))
	require.Len(t, got, 3)
	require.Equal(t, "small-1", got[0].ID)
	require.Equal(t, 4, got[2].Priority)
}
