package sched

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

func TestEnvelope_SaysWhoAsksAndCarriesControlFlags(t *testing.T) {
	t.Parallel()
	job := &jobs.Job{ID: "j1", Submitter: "uid:1000"}
	require.JSONEq(t, `{"job_id":"j1","actor":"uid:1000"}`, string(envelope(job)))
	job.Spec.Labels = map[string]string{"run": "r1", "control.force": "true", "control.cache": "false", "control.mode": "deep", "control.": "x"}
	require.JSONEq(t, `{"job_id":"j1","actor":"uid:1000","control":{"force":true,"cache":false,"mode":"deep"}}`, string(envelope(job)))
}

func TestEnvelope_FitsTheHeaderWhateverTheLabelsAre(t *testing.T) {
	t.Parallel()
	job := &jobs.Job{Submitter: strings.Repeat("s", 200), Spec: jobs.Spec{Labels: map[string]string{}}}
	for i := range 64 {
		job.Spec.Labels[fmt.Sprintf("control.%02d", i)] = strings.Repeat("<", 98)
		job.Spec.Labels[fmt.Sprintf("control.long-%02d", i)] = strings.Repeat("x", 1024)
	}
	raw := envelope(job)
	require.Less(t, len(raw), 48<<10, "a header holds 64 KiB")
	require.NotContains(t, string(raw), "long")
	require.Contains(t, string(raw), `"63"`)
}
