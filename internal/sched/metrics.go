package sched

import "github.com/prometheus/client_golang/prometheus"

// metrics are what the loop knows and a scrape may read.
type metrics struct {
	pass     prometheus.Histogram
	admitted prometheus.Counter
	refused  prometheus.Counter
	evicted  prometheus.Counter
	running  prometheus.Gauge
	ready    prometheus.Gauge
	blocked  *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		pass: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cjmd_sched_pass_seconds", Help: "Time of one scheduling pass.",
			Buckets: []float64{10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 100e-3},
		}),
		admitted: prometheus.NewCounter(prometheus.CounterOpts{Name: "cjmd_sched_admitted_total", Help: "Attempts of jobs that were started."}),
		refused:  prometheus.NewCounter(prometheus.CounterOpts{Name: "cjmd_sched_refused_total", Help: "Jobs that the policy failed without an attempt."}),
		evicted:  prometheus.NewCounter(prometheus.CounterOpts{Name: "cjmd_sched_evictions_total", Help: "Idle workers stopped to make room."}),
		running:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "cjmd_sched_running", Help: "Jobs that hold a run slot."}),
		ready:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "cjmd_sched_ready", Help: "Pending jobs that may start as far as the queue is concerned."}),
		blocked: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cjmd_sched_blocked_instances", Help: "Instances whose jobs wait, by the code of the reason.",
		}, []string{"code"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.pass, m.admitted, m.refused, m.evicted, m.running, m.ready, m.blocked} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
