package simtest

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// Summary is a result in figures. Times are in seconds.
type Summary struct {
	Policy    string         `json:"policy"`
	Makespan  float64        `json:"makespan_s"`
	OfBound   float64        `json:"of_lower_bound"` // 1: as good as can be
	Completed int            `json:"completed"`
	Failed    int            `json:"failed"` // refused, out of attempts, timed out
	Unended   int            `json:"unended"`
	Starts    int            `json:"starts"` // runs admitted; more than jobs where some were tried again
	OOMs      int            `json:"out_of_memory"`
	Loads     int            `json:"loads"`
	Stops     int            `json:"stops"`
	Releases  int            `json:"releases"`
	Devices   []DeviceUse    `json:"devices"`
	Plugins   []PluginWait   `json:"plugins"`
	Reasons   map[string]int `json:"failures,omitempty"` // by the first words of the error
	Notes     map[string]int `json:"events,omitempty"`   // scheduler's events by kind
}

// DeviceUse says how a device was used until the end.
type DeviceUse struct {
	Device resource.DeviceID `json:"device"`
	Busy   float64           `json:"busy"`   // share of time in which something ran on it
	Memory float64           `json:"memory"` // mean share of its memory held by our workers
}

// PluginWait is how long the jobs of a plugin waited for their last run.
type PluginWait struct {
	Plugin string  `json:"plugin"`
	Jobs   int     `json:"jobs"`
	P50    float64 `json:"p50_s"`
	P90    float64 `json:"p90_s"`
	Max    float64 `json:"max_s"`
}

// Summarise turns a result into figures.
func Summarise(r *Result, bound Bound) Summary {
	s := Summary{Policy: r.Policy, Makespan: r.End.Seconds(), Starts: r.Admissions, OOMs: len(r.OOMs), Loads: r.Loads, Stops: r.Stops,
		Releases: r.Releases, Reasons: make(map[string]int), Notes: make(map[string]int)}
	if bound.Makespan > 0 {
		s.OfBound = s.Makespan / bound.Makespan.Seconds()
	}
	waits := make(map[string][]float64)
	for _, j := range r.Jobs {
		switch {
		case j.Status == jobs.Completed:
			s.Completed++
			waits[j.Plugin] = append(waits[j.Plugin], j.Wait.Seconds())
		case j.Status.Final():
			s.Failed++
			s.Reasons[firstWords(j.Error)]++
		default:
			s.Unended++
		}
	}
	for _, name := range sortedKeys(waits) {
		w := waits[name]
		slices.Sort(w)
		s.Plugins = append(s.Plugins, PluginWait{Plugin: name, Jobs: len(w), P50: quantile(w, 0.5), P90: quantile(w, 0.9), Max: w[len(w)-1]})
	}
	for _, n := range r.Notes {
		s.Notes[string(n.Kind)]++
	}
	for _, d := range r.Trace.Machine.Devices {
		s.Devices = append(s.Devices, r.use(resource.DeviceID(d.ID)))
	}
	return s
}

func quantile(sorted []float64, q float64) float64 {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func firstWords(s string) string {
	words := strings.Fields(s)
	return strings.Join(words[:min(len(words), 8)], " ")
}

func (r *Result) use(dev resource.DeviceID) DeviceUse {
	u := DeviceUse{Device: dev}
	if r.End <= 0 {
		return u
	}
	var busy, last time.Duration
	for _, s := range r.Spans { // in order of their begin
		if s.Kind == KindRun && slices.Contains(s.Devices, dev) && s.To > last {
			busy += s.To - max(s.From, last)
			last = s.To
		}
	}
	u.Busy = min(busy.Seconds()/r.End.Seconds(), 1)
	var total resource.Bytes
	for _, d := range r.Trace.Machine.Devices {
		if resource.DeviceID(d.ID) == dev {
			total = resource.FromMB(d.TotalMB)
		}
	}
	area := 0.0
	for owner, points := range r.Memory[dev] {
		if strings.HasPrefix(owner, "~") {
			continue
		}
		for i, p := range points {
			to := r.End
			if i+1 < len(points) {
				to = min(points[i+1].At, r.End)
			}
			area += float64(p.Bytes) * max(to-p.At, 0).Seconds()
		}
	}
	u.Memory = area / (float64(total) * r.End.Seconds())
	return u
}

// Comparison is one trace under several policies.
type Comparison struct {
	Trace   string    `json:"trace"`
	About   string    `json:"about,omitempty"`
	Jobs    int       `json:"jobs"`
	Bound   Bound     `json:"lower_bound"`
	Results []Summary `json:"results"` // the first one is what was asked for
}

// Print writes the comparison for people.
func (c *Comparison) Print(w io.Writer) error {
	fmt.Fprintf(w, "%s: %d jobs\n", c.Trace, c.Jobs)
	if c.About != "" {
		fmt.Fprintf(w, "  %s\n", strings.TrimSpace(c.About))
	}
	fmt.Fprintf(w, "  no schedule ends before %s (%s)\n\n", short(c.Bound.Makespan.Seconds()), c.Bound.Why)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  policy\tmakespan\tof bound\tdone\tfailed\tOOMs\tloads\tstops\tbusy\tmemory")
	for _, s := range c.Results {
		fmt.Fprintf(tw, "  %s\t%s\t%.2f\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", s.Policy, short(s.Makespan), s.OfBound, s.Completed,
			s.Failed+s.Unended, s.OOMs, s.Loads, s.Stops, percents(s.Devices, func(d DeviceUse) float64 { return d.Busy }),
			percents(s.Devices, func(d DeviceUse) float64 { return d.Memory }))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	c.printWaits(w)
	for _, s := range c.Results {
		for _, why := range byCount(s.Reasons) {
			fmt.Fprintf(w, "  %s: %d failed: %s …\n", s.Policy, s.Reasons[why], why)
		}
	}
	fmt.Fprintln(w)
	return nil
}

// printWaits has one row a plugin, one group of columns a policy.
func (c *Comparison) printWaits(w io.Writer) {
	fmt.Fprintln(w, "\n  waits: half, nine of ten, and all jobs started within")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := "  plugin"
	names := make(map[string]bool)
	for _, s := range c.Results {
		row += "\t" + s.Policy
		for _, p := range s.Plugins {
			names[p.Plugin] = true
		}
	}
	fmt.Fprintln(tw, row)
	for _, name := range sortedKeys(names) {
		row := "  " + name
		for _, s := range c.Results {
			cell := "-"
			if i := slices.IndexFunc(s.Plugins, func(p PluginWait) bool { return p.Plugin == name }); i >= 0 {
				p := s.Plugins[i]
				cell = short(p.P50) + " / " + short(p.P90) + " / " + short(p.Max)
			}
			row += "\t" + cell
		}
		fmt.Fprintln(tw, row)
	}
	_ = tw.Flush() // the writer below has told its errors above
}

func byCount(m map[string]int) []string {
	keys := sortedKeys(m)
	slices.SortStableFunc(keys, func(a, b string) int { return -cmp.Compare(m[a], m[b]) })
	return keys
}

func percents(ds []DeviceUse, f func(DeviceUse) float64) string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = fmt.Sprintf("%.0f%%", 100*f(d))
	}
	return strings.Join(out, " ")
}

// short is a time as people say it.
func short(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", s)
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0fs", s)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// Compare simulates a trace under a policy and under those it is compared with.
// The results come in the order of the summaries.
func Compare(t *Trace, o Options) (*Comparison, []*Result, error) {
	sequential, skip := o, o
	sequential.Policy, sequential.Slots, sequential.Watch = Sequential(), 1, nil
	skip.Policy, skip.Slots, skip.Watch = SkipAhead(), 0, nil
	return each(t, o, sequential, skip)
}

// Alone simulates a trace under one policy and sets it beside the lower bound.
func Alone(t *Trace, o Options) (*Comparison, []*Result, error) { return each(t, o) }

func each(t *Trace, all ...Options) (*Comparison, []*Result, error) {
	c := &Comparison{Trace: t.Name, About: t.About, Jobs: len(t.Submissions()), Bound: LowerBound(t)}
	var results []*Result
	for _, o := range all {
		r, err := Simulate(t, o)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot simulate %s with policy %s: %w", t.Name, o.Policy.Name(), err)
		}
		results = append(results, r)
		c.Results = append(c.Results, Summarise(r, c.Bound))
	}
	return c, results, nil
}
