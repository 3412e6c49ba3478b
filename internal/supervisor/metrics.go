package supervisor

import "github.com/prometheus/client_golang/prometheus"

// metrics of all workers.
type metrics struct {
	starts  prometheus.Counter
	exits   *prometheus.CounterVec
	load    prometheus.Histogram
	dropped prometheus.Counter
}

var stateDesc = prometheus.NewDesc("cjmd_workers", "Workers by state.", []string{"state"}, nil)

// newMetrics registers with reg, or nowhere when it is nil.
func newMetrics(reg prometheus.Registerer, s *Supervisor) *metrics {
	m := &metrics{
		starts: prometheus.NewCounter(prometheus.CounterOpts{Name: "cjmd_worker_starts_total", Help: "Worker processes started."}),
		exits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cjmd_worker_exits_total", Help: "Worker processes ended, and starts that made none, by kind.",
		}, []string{"kind"}),
		load: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cjmd_worker_load_seconds", Help: "Time from the start of a process to its readiness.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10),
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cjmd_worker_log_lines_dropped_total", Help: "Lines of worker logs that never reached the disk.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.starts, m.exits, m.load, m.dropped, stateCollector{s})
	}
	return m
}

// stateCollector counts workers by state when asked.
type stateCollector struct{ s *Supervisor }

func (c stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- stateDesc }

func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	count := map[State]int{}
	for _, st := range c.s.List() {
		count[st.State]++
	}
	for _, row := range stateTable {
		ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, float64(count[row.state]), string(row.state))
	}
}
