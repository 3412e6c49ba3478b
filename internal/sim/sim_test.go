package sim_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
)

const gib = 1024 * resource.MiB

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run gives the test a machine with two cards of 24 and 12 GiB in virtual time.
func run(t *testing.T, change func(*sim.Options), f func(m *sim.Machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := sim.Options{Seed: 1, CPUs: 8, RAM: 64 * gib, RAMUsed: 4 * gib, Devices: []sim.Device{
			{ID: "a", Name: "big", Total: 24 * gib}, {ID: "b", Name: "small", Total: 12 * gib}}}
		if change != nil {
			change(&o)
		}
		m, err := sim.New(o)
		require.NoError(t, err)
		defer m.Close()
		f(m)
	})
}

// wait lets virtual time pass up to and including d from now.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

var program = sim.Program{Name: "p", ResidentVRAM: 8 * gib, ExecuteVRAM: 4 * gib, ResidentRAM: 2 * gib, Load: sim.Fixed(10 * time.Second), Run: sim.Fixed(20 * time.Second),
	ReleaseLag: sim.Fixed(3 * time.Second)}

// start loads a worker and returns it when it is ready.
func start(t *testing.T, m *sim.Machine, p sim.Program, dev ...resource.DeviceID) *sim.Worker {
	t.Helper()
	var loadErr error
	w, err := m.Start(p.Name, p, dev, func(err error) { loadErr = err }, nil)
	require.NoError(t, err)
	wait(p.Load.Mean())
	require.NoError(t, loadErr)
	require.Equal(t, sim.Ready, w.State())
	return w
}

func TestWorker_TakesItsMemoryStepByStepAndGivesItBackLate(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		w, err := m.Start("p", program, []resource.DeviceID{"a"}, func(error) {}, nil)
		require.NoError(t, err)
		wait(5 * time.Second)
		held := m.Held("p", "a")
		require.Greater(t, held, resource.Bytes(0))
		require.Less(t, held, 8*gib)
		wait(5 * time.Second)
		require.Equal(t, 8*gib, m.Held("p", "a"))
		require.Equal(t, 2*gib, m.Held("p", resource.HostDevice))

		gone := false
		w.Stop(func() { gone = true })
		wait(time.Second)
		require.True(t, gone)
		require.Zero(t, w.PID())
		require.Equal(t, 16*gib, m.Free("a"), "the memory of a dead process is back at once")
		wait(3 * time.Second)
		require.Equal(t, 24*gib, m.Free("a"))
	})
}

func TestWorker_RunTakesExecuteMemoryAndGivesItBack(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		w := start(t, m, program, "a")
		var ended error = errors.New("not yet")
		require.NoError(t, w.Run("j", 0, func(err error) { ended = err }))
		wait(time.Second)
		require.Equal(t, 10*gib, m.Held("p", "a"))
		wait(5 * time.Second)
		require.Equal(t, 12*gib, m.Held("p", "a"))
		wait(14 * time.Second)
		require.NoError(t, ended)
		require.Equal(t, 8*gib, m.Held("p", "a"))
	})
}

func TestWorker_CachingAllocatorKeepsUntilItIsAskedToRelease(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		p := program
		p.Keeps = true
		w := start(t, m, p, "a")
		for _, id := range []string{"1", "2"} { // the second uses what the first left
			require.NoError(t, w.Run(id, time.Second, func(error) {}))
			wait(time.Second)
			require.Equal(t, 12*gib, m.Held("p", "a"))
		}
		require.Equal(t, 4*gib, w.Release())
		require.Equal(t, 8*gib, m.Held("p", "a"))
	})
}

func TestDevice_FullMeansOutOfMemory(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		start(t, m, program, "b")
		var memory *sim.MemoryError
		var loadErr, died error
		second := program
		second.Name = "q"
		_, err := m.Start("q", second, []resource.DeviceID{"b"}, func(err error) { loadErr = err }, func(err error) { died = err })
		require.NoError(t, err)
		wait(10 * time.Second)
		require.ErrorAs(t, loadErr, &memory)
		require.Equal(t, resource.DeviceID("b"), memory.Device)
		require.ErrorAs(t, died, &memory)
		require.Equal(t, 1, m.Alive())
	})
}

func TestRun_OutOfMemoryIsTheCallsEndOrTheWorkers(t *testing.T) {
	for _, kills := range []bool{false, true} {
		run(t, nil, func(m *sim.Machine) {
			p := program
			p.ExecuteVRAM, p.OOMKills = 6*gib, kills
			w := start(t, m, p, "b")
			var ended error
			require.NoError(t, w.Run("j", 0, func(err error) { ended = err }))
			wait(20 * time.Second)
			var memory *sim.MemoryError
			require.ErrorAs(t, ended, &memory)
			if kills {
				require.Equal(t, sim.Dead, w.State())
				return
			}
			require.Equal(t, sim.Ready, w.State())
			require.Equal(t, 8*gib, m.Held("p", "b"), "a failed call keeps nothing")
		})
	}
}

func TestRun_OutOfMemoryOnOneDeviceLeavesNothingOnTheOthers(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		p := program
		p.ExecuteVRAM = 6 * gib
		w := start(t, m, p, "a", "b")
		var ended error
		require.NoError(t, w.Run("j", 0, func(err error) { ended = err }))
		wait(20 * time.Second)
		var memory *sim.MemoryError
		require.ErrorAs(t, ended, &memory)
		require.Equal(t, 8*gib, m.Held("p", "a"))
		require.Equal(t, 8*gib, m.Held("p", "b"))
	})
}

func TestWorker_DeafOneIsKilledAfterItsGrace(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		p := program
		p.IgnoreTerm = true
		w := start(t, m, p, "a")
		var gone atomic.Int32
		w.Stop(func() { gone.Add(1) })
		wait(4 * time.Second)
		require.Zero(t, gone.Load())
		wait(time.Second)
		require.EqualValues(t, 1, gone.Load())
		w.Stop(func() { gone.Add(1) }) // dead before it is stopped
		wait(0)
		require.EqualValues(t, 2, gone.Load(), "nobody is told that it is dead")
	})
}

func TestLeak_StaysAfterDeathForItsTime(t *testing.T) {
	run(t, nil, func(m *sim.Machine) {
		p := program
		p.Leak, p.LeakFor = gib, time.Minute
		w := start(t, m, p, "a")
		w.Kill()
		wait(3 * time.Second)
		require.Equal(t, 23*gib, m.Free("a"))
		wait(time.Minute)
		require.Equal(t, 24*gib, m.Free("a"))
	})
}

func TestFaults_HappenAtTheirTimes(t *testing.T) {
	run(t, func(o *sim.Options) {
		o.Faults = []sim.Fault{
			{Kind: sim.Foreign, Name: "game", Device: "a", At: 20 * time.Second, Until: 60 * time.Second, Bytes: 10 * gib, Ramp: 10 * time.Second},
			{Kind: sim.Silence, At: 30 * time.Second, Until: 40 * time.Second},
			{Kind: sim.NoPIDs, At: 45 * time.Second, Until: 50 * time.Second},
			{Kind: sim.Vanish, Device: "b", At: 70 * time.Second, Until: 80 * time.Second},
			{Kind: sim.Crash, Name: "p", At: 90 * time.Second},
		}
	}, func(m *sim.Machine) {
		begin := time.Now()
		at := func(d time.Duration) { wait(time.Until(begin.Add(d))) }
		w := start(t, m, program, "a")
		q := program
		q.Name = "q"
		w2 := start(t, m, q, "b")
		at(25 * time.Second)
		require.InDelta(t, float64(5*gib), float64(m.Held("~game", "a")), float64(2*gib))
		at(29 * time.Second)
		require.Equal(t, 10*gib, m.Held("~game", "a"))
		at(35 * time.Second)
		_, ok := m.Read("sim")
		require.False(t, ok)
		at(47 * time.Second)
		s, ok := m.Read("sim")
		require.True(t, ok)
		require.Empty(t, s.Processes)
		at(55 * time.Second)
		s, _ = m.Read("sim")
		require.Len(t, s.Processes, 3, "two workers and a game: %+v", s.Processes)
		at(75 * time.Second)
		s, _ = m.Read("sim")
		require.Len(t, s.Devices, 1)
		require.Equal(t, sim.Dead, w2.State())
		at(85 * time.Second)
		s, _ = m.Read("sim")
		require.Len(t, s.Devices, 2)
		at(90 * time.Second)
		require.Equal(t, sim.Dead, w.State())
	})
}

func TestForeign_GetsOnlyWhatIsLeft(t *testing.T) {
	run(t, func(o *sim.Options) {
		o.Faults = []sim.Fault{{Kind: sim.Foreign, Name: "game", Device: "b", At: 15 * time.Second, Bytes: 10 * gib}}
	}, func(m *sim.Machine) {
		start(t, m, program, "b")
		wait(time.Minute)
		require.Equal(t, 4*gib, m.Held("~game", "b"))
		require.Zero(t, m.Free("b"))
	})
}

func TestReading_Lags(t *testing.T) {
	run(t, func(o *sim.Options) { o.ReadLag = 5 * time.Second }, func(m *sim.Machine) {
		start(t, m, program, "a")
		s, _ := m.Read("sim")
		require.Greater(t, s.Devices[0].Free, 16*gib, "shows a worker that was loaded this moment")
		require.True(t, s.At.Equal(time.Now()), "it does not say that it is old")
		wait(5 * time.Second)
		s, _ = m.Read("sim")
		require.Equal(t, 16*gib, s.Devices[0].Free)
	})
}

func TestUnified_SharesWithTheHost(t *testing.T) {
	run(t, func(o *sim.Options) {
		o.Devices = []sim.Device{{ID: "apu", Total: 48 * gib, Unified: true}}
	}, func(m *sim.Machine) {
		start(t, m, program, "apu")
		require.Equal(t, 50*gib, m.Free(resource.HostDevice), "64 − 4 system − 8 device − 2 host")
		require.Equal(t, 40*gib, m.Free("apu"))
	})
}

func TestDraws_DependOnSeedAndNameAlone(t *testing.T) {
	t.Parallel()
	s := sim.Span{Min: time.Second, Max: 3 * time.Second}
	require.Equal(t, s.Draw(1, "x"), s.Draw(1, "x"))
	require.NotEqual(t, s.Draw(1, "x"), s.Draw(2, "x"))
	sum := time.Duration(0)
	for i := range 1000 {
		d := s.Draw(7, "job-"+string(rune('a'+i%26))+time.Duration(i).String())
		require.GreaterOrEqual(t, d, time.Second)
		require.Less(t, d, 3*time.Second)
		sum += d
	}
	require.InDelta(t, 2.0, (sum / 1000).Seconds(), 0.1)
}

func TestNew_RefusesNonsense(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]sim.Options{
		"no memory":     {CPUs: 1},
		"device twice":  {CPUs: 1, RAM: gib, Devices: []sim.Device{{ID: "a", Total: 1}, {ID: "a", Total: 1}}},
		"host device":   {CPUs: 1, RAM: gib, Devices: []sim.Device{{ID: resource.HostDevice, Total: 1}}},
		"unknown fault": {CPUs: 1, RAM: gib, Faults: []sim.Fault{{Kind: "flood"}}},
		"no device":     {CPUs: 1, RAM: gib, Faults: []sim.Fault{{Kind: sim.Foreign, Device: "x"}}},
		"ends early":    {CPUs: 1, RAM: gib, Faults: []sim.Fault{{Kind: sim.Silence, At: 2, Until: 1}}},
	} {
		_, err := sim.New(o)
		require.Error(t, err, name)
	}
}
