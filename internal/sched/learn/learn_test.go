package learn_test

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gib = 1024 * resource.MiB

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func fresh() learn.Profile {
	return learn.New(learn.Key{Plugin: "whisper", ConfigHash: learn.ConfigHash(nil), DeviceModel: "RTX 4090"})
}

func load(vram resource.Bytes) learn.Sample {
	return learn.Sample{Phase: learn.Load, At: start, Duration: 4 * time.Second, VRAM: vram, Source: learn.SourceNVML, RAM: gib}
}

func run(vram resource.Bytes) learn.Sample {
	return learn.Sample{Phase: learn.Run, At: start, Duration: time.Second, VRAM: vram, Source: learn.SourceNVML, RAM: gib / 2}
}

func TestProfile_KnowsAfterOneGoodLoadAndRun(t *testing.T) {
	t.Parallel()
	p := fresh()
	require.Equal(t, learn.Estimate{}, p.Estimate())
	p.Observe(load(6 * gib))
	require.False(t, p.Estimate().Known, "what a job takes is not known yet")
	failed := run(9 * gib)
	failed.Failed = true
	p.Observe(failed)
	require.False(t, p.Estimate().Known)
	p.OOM(learn.OOM{Phase: learn.Run, Claimed: gib})
	require.False(t, p.Estimate().Known)
	p.Observe(run(gib))
	require.Equal(t, learn.Estimate{
		ResidentVRAM: 6 * gib, ExecuteVRAM: 9*gib + 9*gib/4, WholeVRAM: 15*gib + 15*gib/4, ResidentRAM: gib, ExecuteRAM: gib / 2,
		Known: true, KnownRAM: true, LoadSeen: true, Source: learn.SourceNVML,
	}, p.Estimate())
}

func TestProfile_UnmeasuredMemoryTeachesOnlyTime(t *testing.T) {
	t.Parallel()
	p := fresh()
	p.Observe(learn.Sample{Phase: learn.Load, At: start, Duration: time.Second, VRAM: 5 * gib})
	require.Equal(t, learn.Estimate{}, p.Estimate())
	p50, p90 := p.LoadTime()
	require.Equal(t, time.Second, p50)
	require.Equal(t, time.Second, p90)
	require.Equal(t, start, p.UpdatedAt)
}

// A measured zero is knowledge: this plugin runs on the processor.
func TestProfile_MeasuredZeroIsKnown(t *testing.T) {
	t.Parallel()
	p := fresh()
	p.Observe(load(0))
	p.Observe(run(0))
	e := p.Estimate()
	require.True(t, e.Known)
	require.Zero(t, e.ResidentVRAM+e.ExecuteVRAM)
}

// Also of host memory: a run that takes none of it lowers what a greedy one left.
func TestProfile_MeasuredZeroOfHostMemory(t *testing.T) {
	t.Parallel()
	p := fresh()
	p.Observe(load(0))
	p.Observe(run(0))
	none := run(0)
	none.RAM = 0
	for range 500 {
		p.Observe(none)
	}
	require.Equal(t, gib/2, p.Estimate().ExecuteRAM, "nothing was measured")
	none.HasRAM = true
	for range 500 {
		p.Observe(none)
	}
	require.Zero(t, p.Estimate().ExecuteRAM)
	require.True(t, p.Estimate().KnownRAM)
}

func TestProfile_FailedLoadsAndRunsTeachNoTimes(t *testing.T) {
	t.Parallel()
	p := fresh()
	s := load(gib)
	s.Failed = true
	p.Observe(s)
	p.OOM(learn.OOM{Phase: learn.Load, Claimed: gib})
	p50, p90 := p.LoadTime()
	require.Zero(t, p50+p90)
	require.EqualValues(t, 1, p.Load.Failed)
	require.Zero(t, p.Load.Count)
}

func TestProfile_TimesAreMedianAndNinetiethPercentile(t *testing.T) {
	t.Parallel()
	p := fresh()
	for i := range 10 {
		s := run(gib)
		s.Duration = time.Duration(10-i) * time.Second
		p.Observe(s)
	}
	p50, p90 := p.RunTime()
	require.Equal(t, 5*time.Second, p50)
	require.Equal(t, 9*time.Second, p90)
	for range learn.Window {
		p.Observe(run(gib)) // 1 s each: what it took long ago no longer counts
	}
	_, p90 = p.RunTime()
	require.Equal(t, time.Second, p90)
	require.EqualValues(t, 10+learn.Window, p.Run.Count)
}

func TestProfile_OutOfMemory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		known, claimed resource.Bytes
		limit, want    resource.Bytes
	}{
		{"a quarter more than was known", 4 * gib, 4 * gib, 0, 5 * gib},
		{"a quarter more than was set aside, if that was more", 4 * gib, 8 * gib, 0, 10 * gib},
		{"nothing was known", 0, 8 * gib, 0, 10 * gib},
		{"not beyond the device", 20 * gib, 20 * gib, 24 * gib, 24 * gib},
		{"a figure beyond the device stays", 30 * gib, 0, 24 * gib, 30 * gib},
		{"nonsense changes nothing", 4, -7, -9, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := fresh()
			if c.known > 0 {
				p.Observe(run(c.known))
			}
			p.OOM(learn.OOM{Phase: learn.Run, Claimed: c.claimed, Limit: c.limit, At: start.Add(time.Hour)})
			require.Equal(t, c.want, p.Estimate().ExecuteVRAM)
			require.Zero(t, p.Estimate().ResidentVRAM)
			require.EqualValues(t, 1, p.ExecuteVRAM.OOMs)
			require.Equal(t, start.Add(time.Hour), p.UpdatedAt)
		})
	}
	p := fresh()
	p.OOM(learn.OOM{Phase: learn.Load, Host: true, Claimed: 4 * gib})
	require.Equal(t, learn.Estimate{ResidentRAM: 5 * gib}, p.Estimate())
}

func TestProfile_FallsSlowlyAfterTwentyCleanRuns(t *testing.T) {
	t.Parallel()
	p := fresh()
	p.Observe(run(4 * gib))
	p.OOM(learn.OOM{Phase: learn.Run})
	require.Equal(t, 5*gib, p.Estimate().ExecuteVRAM)
	for range 20 {
		p.Observe(run(4 * gib))
		require.Equal(t, 5*gib, p.Estimate().ExecuteVRAM)
	}
	p.Observe(run(4 * gib))
	require.Equal(t, 5*gib-gib/8, p.Estimate().ExecuteVRAM)
	failed := run(4 * gib)
	failed.Failed = true
	p.Observe(failed)
	require.Equal(t, 5*gib-gib/8, p.Estimate().ExecuteVRAM, "a failed run is no reason to trust a smaller figure")
	for range 100 {
		p.Observe(run(4 * gib))
	}
	require.Equal(t, 4*gib, p.Estimate().ExecuteVRAM)
	require.Equal(t, 4*gib, p.ExecuteVRAM.Max)
}

// An occasional large input keeps its room as long as it is within the window.
func TestProfile_KeepsTheRoomOfARecentPeak(t *testing.T) {
	t.Parallel()
	p := fresh()
	p.Observe(run(10 * gib))
	for range learn.Window - 1 {
		p.Observe(run(gib))
	}
	require.Equal(t, 10*gib, p.Estimate().ExecuteVRAM)
	p.Observe(run(gib))
	require.Less(t, p.Estimate().ExecuteVRAM, 10*gib)
	require.Equal(t, gib, p.ExecuteVRAM.P95())
	require.Equal(t, 10*gib, p.ExecuteVRAM.Max)
}

func TestFigure_P95(t *testing.T) {
	t.Parallel()
	p := fresh()
	for i := range 20 {
		p.Observe(run(resource.Bytes(i + 1)))
	}
	require.EqualValues(t, 19, p.ExecuteVRAM.P95())
	require.Zero(t, learn.Figure{}.P95())
}

// step is one thing that may happen to a profile.
func step(t *rapid.T) func(*learn.Profile) (clean bool, failed bool) {
	phase := rapid.SampledFrom([]learn.Phase{learn.Load, learn.Run}).Draw(t, "phase")
	amount := rapid.OneOf(rapid.Int64Range(0, int64(48*gib)), rapid.Int64()).Draw(t, "bytes")
	switch kind := rapid.IntRange(0, 5).Draw(t, "kind"); kind {
	case 0:
		o := learn.OOM{Phase: phase, Claimed: resource.Bytes(amount), Limit: resource.Bytes(rapid.Int64().Draw(t, "limit"))}
		return func(p *learn.Profile) (bool, bool) { p.OOM(o); return false, true }
	default:
		s := learn.Sample{
			Phase: phase, At: start, VRAM: resource.Bytes(amount), Source: learn.SourceWorker, RAM: resource.Bytes(amount), Failed: kind == 1,
			Duration: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "took")),
		}
		return func(p *learn.Profile) (bool, bool) { p.Observe(s); return kind != 1, kind == 1 }
	}
}

func figures(p learn.Profile) []learn.Figure {
	return []learn.Figure{p.ResidentVRAM, p.ExecuteVRAM, p.ResidentRAM, p.ExecuteRAM}
}

func TestProfile_Properties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := fresh()
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			before := p
			asJSON, err := json.Marshal(before)
			require.NoError(t, err)
			_, failed := step(t)(&p)
			again, err := json.Marshal(before)
			require.NoError(t, err)
			require.JSONEq(t, string(asJSON), string(again), "a copy does not change")
			was := figures(before)
			for i, f := range figures(p) {
				require.LessOrEqual(t, len(f.Recent), learn.Window)
				require.GreaterOrEqual(t, f.Estimate, resource.Bytes(0))
				if len(f.Recent) > 0 {
					require.GreaterOrEqual(t, f.Estimate, slices.Max(f.Recent), "never below a clean sample of the window")
					require.LessOrEqual(t, f.P95(), slices.Max(f.Recent))
					require.GreaterOrEqual(t, f.Max, slices.Max(f.Recent))
				}
				require.GreaterOrEqual(t, f.Max, was[i].Max)
				if failed {
					require.GreaterOrEqual(t, f.Estimate, was[i].Estimate, "failures never lower")
				}
				if fall := was[i].Estimate - f.Estimate; fall > 0 {
					require.Greater(t, f.Clean, int64(20), "it falls only after twenty clean ones")
					require.LessOrEqual(t, fall, max(was[i].Estimate/8, resource.MiB), "and slowly")
				}
			}
			require.LessOrEqual(t, len(p.Load.Recent), learn.Window)
			require.LessOrEqual(t, len(p.Run.Recent), learn.Window)
			b, err := json.Marshal(p)
			require.NoError(t, err)
			require.Less(t, len(b), 8<<10, "a profile stays small")
			var read learn.Profile
			require.NoError(t, json.Unmarshal(b, &read))
			require.Equal(t, p, read)
		}
	})
}

// Whatever happened before, steady behaviour is learned in the end.
func TestProfile_ConvergesOnWhatIsSteady(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := fresh()
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			step(t)(&p)
		}
		steady := resource.Bytes(rapid.Int64Range(0, int64(48*gib)).Draw(t, "steady"))
		for range 500 {
			p.Observe(run(steady))
		}
		require.Equal(t, steady, p.ExecuteVRAM.Estimate)
	})
}

func TestProfile_RepeatedOutOfMemoryDoesNotOverflow(t *testing.T) {
	t.Parallel()
	p := fresh()
	p.Observe(run(math.MaxInt64))
	for range 300 {
		p.OOM(learn.OOM{Phase: learn.Run, Claimed: math.MaxInt64})
		require.Positive(t, p.ExecuteVRAM.Estimate)
	}
}
