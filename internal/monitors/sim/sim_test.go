package sim_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/monitors/sim"
	"github.com/cjmd/cjmd/internal/resource"
	model "github.com/cjmd/cjmd/internal/sim"
)

const gib = 1024 * resource.MiB

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func machine(t testing.TB, faults ...model.Fault) *model.Machine {
	t.Helper()
	m, err := model.New(model.Options{CPUs: 8, RAM: 64 * gib, RAMUsed: 4 * gib, Faults: faults,
		Devices: []model.Device{{ID: "GPU-a", Name: "card", Total: 24 * gib, Used: gib}}})
	require.NoError(t, err)
	t.Cleanup(m.Close)
	return m
}

func TestMonitor_Conforms(t *testing.T) {
	monitortest.Run(t, func(t *testing.T) monitors.Monitor {
		return sim.New(machine(t), monitors.NewPace(time.Millisecond, time.Millisecond))
	})
}

func TestMonitor_IsSilentAsScriptedAndTheGateGoesStaleAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := machine(t, model.Fault{Kind: model.Silence, At: 30 * time.Second, Until: 50 * time.Second})
		pace := monitors.NewPace(0, 0)
		gate, err := monitors.New(monitors.Options{Pace: pace, Constructors: []monitors.Constructor{sim.Constructor(m)}})
		require.NoError(t, err)
		require.NoError(t, gate.RegisterName(t.Context(), "sim"))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- gate.Run(ctx) }()

		time.Sleep(20 * time.Second)
		s, fresh := gate.Latest()
		require.True(t, fresh)
		require.Equal(t, 23*gib, s.Devices[0].Free)
		time.Sleep(25 * time.Second) // 45 s: silent for 15 s
		_, fresh = gate.Latest()
		require.False(t, fresh)
		time.Sleep(15 * time.Second)
		_, fresh = gate.Latest()
		require.True(t, fresh, "readings are back and nobody believes them")
		cancel()
		require.NoError(t, <-ended)
	})
}
