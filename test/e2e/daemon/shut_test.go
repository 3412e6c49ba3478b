package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/test/daemontest"
)

// An instance whose worker crashes again and again is shut: readiness names it,
// without what its worker said, until it is loaded by hand.
func TestReadiness_NamesAShutPluginUntilItIsLoaded(t *testing.T) {
	s, lab := setup(t)
	about := func() (status, why string) {
		t.Helper()
		r, err := s.API.ReadyzWithResponse(s.Ctx())
		if err != nil || r.JSON200 == nil {
			t.Fatalf("%v, %s", err, r.Body)
		}
		at := slices.IndexFunc(r.JSON200.Reasons, func(why string) bool { return strings.Contains(why, "plugin "+lab+" is shut") })
		if at < 0 {
			return string(r.JSON200.Status), ""
		}
		return string(r.JSON200.Status), r.JSON200.Reasons[at]
	}
	for range 6 { // the back-off in between is the price: a quarter of a minute
		s.Failed(once(daemontest.OpOf(lab, "die")), wire.JobErrorCategoryWorkerLost)
	}
	s.Journal(0, func(ev client.Event) bool {
		return ev.Kind == "scheduler.quarantined" && daemontest.Data(t, ev)["plugin"] == lab
	})
	if status, why := about(); status != "degraded" || !strings.Contains(why, "ended too often; load or reload it") {
		t.Errorf("/readyz says %s: %q", status, why)
	}
	job := s.Submit(daemontest.OpOf(lab, "echo"))
	if r, err := s.API.ExplainJobWithResponse(s.Ctx(), job.Id); err != nil || r.JSON200 == nil || r.JSON200.Block == nil || r.JSON200.Block.Code != "worker_failed" {
		t.Errorf("its next job: %v, %s", err, r.Body)
	}
	if r, err := s.API.LoadPluginWithResponse(s.Ctx(), lab); err != nil || r.StatusCode() != 200 {
		t.Fatalf("%v, %s", err, r.Body)
	}
	if _, why := about(); why != "" {
		t.Errorf("it is loaded, and /readyz says %q", why)
	}
	s.IsCompleted(s.Wait(job.Id))
}
