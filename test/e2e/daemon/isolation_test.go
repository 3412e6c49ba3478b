package daemon

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	. "github.com/cjmd/cjmd/test/daemontest"
)

// The owner chooses how an instance is held, sees what is in force, and gets an
// error that names what is missing where it was required.
func TestIsolation_ChosenPerInstanceAndReported(t *testing.T) {
	s, _ := setup(t)
	const name = "held"
	s.InstanceOf("words", wire.InstanceRequest{Id: name})
	t.Cleanup(func() {
		d := common.d.Session(t)
		resp, err := d.API.DeleteInstance(d.Ctx(), "words", name)
		if err != nil || resp.StatusCode != http.StatusNoContent {
			t.Errorf("cannot delete the instance: %v", err)
			return
		}
		_ = resp.Body.Close()
	})
	report := Must[wire.Isolation](t)(s.API.GetIsolation(s.Ctx()))
	if len(report.Tiers) != 4 || !report.Tiers[0].Available {
		t.Fatalf("the tiers are %+v", report.Tiers)
	}
	if boxed := report.Tiers[3]; !boxed.Available {
		if boxed.Why == "" {
			t.Error("tier 3 is missing without a reason")
		}
		t.Skipf("tier 3 cannot be had here: %s", boxed.Why)
	}
	set := func(p wire.InstancePatch) wire.Instance {
		t.Helper()
		return Must[wire.Instance](t)(s.API.PatchInstance(s.Ctx(), "words", name, p))
	}
	in := set(wire.InstancePatch{
		Isolation: &wire.IsolationWish{Tier: "3", Network: "none", Require: []string{"fs", "net"}},
		Limits:    &wire.WorkerLimits{Nofile: 500},
	})
	if in.Isolation == nil || in.Isolation.Network != "none" || in.Limits == nil || in.Limits.Nofile != 500 {
		t.Errorf("the instance is %+v", in)
	}
	Must[wire.Plugin](t)(s.API.ReloadPlugin(s.Ctx(), name))
	var count struct{ Words int }
	if s.Completed(Job(name, map[string]any{"text": "held fast"}), &count); count.Words != 2 {
		t.Errorf("the job in the sandbox counted %d words", count.Words)
	}
	w := s.Worker(name)
	if w.Tier != "sandboxed" {
		t.Errorf("the worker runs in tier %q", w.Tier)
	}
	for _, f := range w.Isolation {
		if f.InForce && f.VerifiedBy == "" {
			t.Errorf("nothing verified %+v", f)
		}
	}
	for _, must := range []string{"fs", "net", "seccomp", "rlimit_nofile"} {
		if !slices.ContainsFunc(w.Isolation, func(f wire.IsolationFact) bool { return f.Mechanism == must && f.InForce }) {
			t.Errorf("%s is not in force: %+v", must, w.Isolation)
		}
	}

	// What cannot be had refuses the start and says why.
	set(wire.InstancePatch{Isolation: &wire.IsolationWish{Tier: "1", Require: []string{"fs"}}})
	if p := Problem(t, http.StatusBadGateway, "start_failed")(s.API.ReloadPlugin(s.Ctx(), name)); !strings.Contains(p.Detail, "required isolation") {
		t.Errorf("the problem is %+v", p)
	}
	// An empty wish is the manifest's again.
	if in := set(wire.InstancePatch{Isolation: &wire.IsolationWish{}, Limits: &wire.WorkerLimits{}}); in.Isolation != nil || in.Limits != nil {
		t.Errorf("the instance is %+v", in)
	}
	for _, bad := range []string{
		`{"isolation": {"tier": "4"}}`, `{"isolation": {"network": "lan"}}`, `{"isolation": {"read": ["relative"]}}`,
		`{"isolation": {"require": ["luck"]}}`, `{"limits": {"pids_max": -1}}`, `{"limits": {"memory": 5}}`,
	} {
		Problem(t, http.StatusUnprocessableEntity, "")(s.Raw(http.MethodPatch, "/v1/plugins/words/instances/"+name, bad))
	}
}
