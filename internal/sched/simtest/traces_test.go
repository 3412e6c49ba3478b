package simtest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/resource"
)

const traceDir = "../../../examples/traces"

func trace(t testing.TB, name string) *Trace {
	t.Helper()
	tr, err := LoadTrace(filepath.Join(traceDir, name+".yaml"))
	require.NoError(t, err)
	return tr
}

// compared is one example trace, simulated once for all tests.
type compared struct {
	once    sync.Once
	c       *Comparison
	results []*Result
	err     error
}

var examples sync.Map // name → *compared

// compare simulates a trace as `cjmd simulate` does.
func compare(t testing.TB, name string) (*Comparison, []*Result) {
	t.Helper()
	tr := trace(t, name)
	known, _ := examples.LoadOrStore(name, new(compared))
	e := known.(*compared)
	e.once.Do(func() {
		e.c, e.results, e.err = Compare(tr, Options{Policy: subject(), RAMMargin: 512 * resource.MiB, Margin: 256 * resource.MiB})
		for _, r := range e.results {
			admissions.Add(int64(r.Admissions))
		}
	})
	c, results := e.c, e.results
	require.NoError(t, e.err)
	require.Equal(t, []string{"reserve", "sequential", "skip-ahead"}, []string{c.Results[0].Policy, c.Results[1].Policy, c.Results[2].Policy})
	return c, results
}

func TestExamples_AllAreSimulatedAndDrawn(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(traceDir, "*.yaml"))
	require.NoError(t, err)
	require.Len(t, files, 5)
	for _, f := range files {
		name := filepath.Base(f[:len(f)-len(".yaml")])
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, results := compare(t, name)
			require.Equal(t, name, c.Trace)
			require.Zero(t, c.Results[0].Unended)
			var text, svg bytes.Buffer
			require.NoError(t, c.Print(&text))
			require.Contains(t, text.String(), "no schedule ends before")
			require.NoError(t, WriteSVG(&svg, results[0], c))
			wellFormed(t, svg.Bytes())
		})
	}
}

func wellFormed(t *testing.T, doc []byte) {
	t.Helper()
	dec := xml.NewDecoder(bytes.NewReader(doc))
	for {
		_, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}

// The promise of the product, in figures.
func TestMixed_NearTheBoundAndFarFromOneAtATime(t *testing.T) {
	t.Parallel()
	c, _ := compare(t, "mixed")
	reserve, sequential := c.Results[0], c.Results[1]
	t.Logf("%.0f s, %.2f of the lower bound, %.2f of sequential", reserve.Makespan, reserve.OfBound, reserve.Makespan/sequential.Makespan)
	require.LessOrEqual(t, reserve.OfBound, 1.15)
	require.LessOrEqual(t, reserve.Makespan, 0.5*sequential.Makespan)
	require.Zero(t, reserve.OOMs)
	require.Zero(t, reserve.Failed)
}

func TestMixed_WithoutALedgerRunsOutOfMemory(t *testing.T) {
	t.Parallel()
	c, _ := compare(t, "mixed")
	require.Positive(t, c.Results[2].OOMs)
	require.Positive(t, c.Results[2].Failed)
}

func TestThrash_ModelsTakeTurnsThatAreWorthTheLoad(t *testing.T) {
	t.Parallel()
	c, _ := compare(t, "thrash")
	require.LessOrEqual(t, c.Results[0].OfBound, 1.25)
	require.LessOrEqual(t, c.Results[0].Makespan, 0.5*c.Results[1].Makespan)
	require.Less(t, c.Results[0].Stops, c.Results[1].Stops/4)
	require.Zero(t, c.Results[0].OOMs)
}

func TestGame_AForeignProgramCostsOneRetryAndNoJob(t *testing.T) {
	t.Parallel()
	c, _ := compare(t, "game")
	require.Zero(t, c.Results[0].Failed)
	require.LessOrEqual(t, c.Results[0].OOMs, 2, "a loop of loads that run out of memory")
	// The bound knows nothing of the game, which has the card for 20 minutes and a
	// minute after. 63 minutes when loaded workers stood idle for the rest of their turns.
	require.LessOrEqual(t, c.Results[0].Makespan, 1.1*(c.Bound.Makespan.Seconds()+21*60))
}

func TestLeak_MissingMemoryIsToldAndNeverHandedOut(t *testing.T) {
	t.Parallel()
	c, _ := compare(t, "leak")
	require.Zero(t, c.Results[0].Failed)
	require.Positive(t, c.Results[0].Notes["scheduler.quarantined"])
	require.LessOrEqual(t, c.Results[0].OOMs, 1)
	require.LessOrEqual(t, c.Results[0].OfBound, 1.2)
}

func TestFlood_UnknownNeedsAreMeasuredAndAllJobsEndWell(t *testing.T) {
	t.Parallel()
	c, _ := compare(t, "flood")
	require.Zero(t, c.Results[0].Failed)
	require.LessOrEqual(t, c.Results[0].OOMs, 12, "six plugins that nobody knows")
	require.LessOrEqual(t, c.Results[0].OfBound, 1.3)
}

// A job of low priority ages past a stream of urgent ones, also of its own plugin.
func TestAge_NobodyWaitsForTheEndOfAStream(t *testing.T) {
	t.Parallel()
	tr, err := ParseTrace([]byte(`
plugins: {p: {load: 5s, run: 10s}}
arrivals:
  - {plugin: p, count: 20, priority: 5}
  - {plugin: p, at: 1m, priority: 0}
  - {plugin: p, count: 200, every: 10s, priority: 5}
`))
	require.NoError(t, err)
	r, err := Simulate(tr, Options{Policy: subject()})
	require.NoError(t, err)
	require.Less(t, Summarise(r, Bound{}).Plugins[0].Max, (12 * time.Minute).Seconds(), "5 minutes of age and the line that was there before")
}

func TestParse_RefusesWhatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, want string }{
		"unknown key":      {"machines: {}\n", "machines"},
		"duration":         {"plugins: {a: {run: soon}}\n", "soon"},
		"range":            {"plugins: {a: {run: 9s..3s}}\n", "ends before"},
		"no run time":      {"plugins: {a: {load: 3s}}\n", "run time"},
		"needs":            {"plugins: {a: {run: 3s, needs: some}}\n", "needs"},
		"unknown plugin":   {"plugins: {a: {run: 3s}}\narrivals: [{plugin: b}]\n", `"b"`},
		"too many devices": {"machine: {devices: [{total_mb: 10}]}\nplugins: {a: {run: 3s, devices: 2}}\n", "spans 2"},
		"fault's device":   {"faults: [{kind: vanish, device: 3}]\n", "no device 3"},
		"empty":            {"", "empty"},
		"no plugins":       {"name: a\n", "no plugins"},
		"negative amount":  {"plugins: {a: {run: 3s, resident_mb: -1}}\n", "negative"},
		"no chance":        {"plugins: {a: {run: 3s, crash: 7}}\n", "between 0 and 1"},
		"too many jobs":    {"plugins: {a: {run: 3s}}\narrivals: [{plugin: a, count: 1000000000}]\n", "at most 1000000"},
		"crash of nobody":  {"plugins: {a: {run: 3s}}\nfaults: [{kind: crash, name: b}]\n", `"b"`},
		"two documents":    {"name: a\n---\nname: b\n", "more than one"},
	} {
		_, err := ParseTrace([]byte(c.body))
		require.ErrorContains(t, err, c.want, name)
	}
	_, err := LoadTrace(filepath.Join(t.TempDir(), "none.yaml"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestBounds_EachKind(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body string
		want float64
		why  string
	}{
		"one job":   {"plugins: {a: {run: 10s, load: 5s}}\narrivals: [{plugin: a, at: 20s}]\n", 35, "the job that comes last"},
		"one slot":  {"plugins: {a: {run: 10s, load: 5s}}\narrivals: [{plugin: a, count: 4}]\n", 45, "the slots of a"},
		"two slots": {"plugins: {a: {run: 10s, concurrency: 2}}\narrivals: [{plugin: a, count: 4}]\n", 20, "the slots of a"},
		"memory": {"machine: {devices: [{total_mb: 1000}]}\nplugins: {a: {run: 100s, resident_mb: 400}, b: {run: 100s, resident_mb: 400}, c: {run: 100s, resident_mb: 400}, d: {run: 100s, resident_mb: 400}}\n" +
			"arrivals: [{plugin: a}, {plugin: b}, {plugin: c}, {plugin: d}]\n", 160, "the memory of the devices"},
		"devices": {"machine: {devices: [{total_mb: 1000}]}\nplugins: {a: {run: 100s, resident_mb: 600}, b: {run: 100s, resident_mb: 600}}\n" +
			"arrivals: [{plugin: a}, {plugin: b}]\n", 200, "the number of devices"},
	} {
		tr, err := ParseTrace([]byte(c.body))
		require.NoError(t, err, name)
		b := LowerBound(tr)
		require.InDelta(t, c.want, b.Makespan.Seconds(), 0.01, name)
		require.Equal(t, c.why, b.Why, name)
		r, err := Simulate(tr, Options{Policy: subject()})
		require.NoError(t, err, name)
		require.GreaterOrEqual(t, r.End, b.Makespan, name)
	}
}
