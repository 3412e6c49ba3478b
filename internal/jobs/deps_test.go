package jobs_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

func TestQueue_Dependencies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{}).ID
	c := b.submit(jobs.Spec{DependsOn: []jobs.ID{a},
		Args:   json.RawMessage(fmt.Sprintf(`[{"$result":%q,"path":"/a/1"}, 1.50]`, a)),
		Kwargs: json.RawMessage(fmt.Sprintf(`{"deep":{"x":[{"$result":%q}]}}`, a))}).ID
	chain := b.submit(jobs.Spec{DependsOn: []jobs.ID{c}}).ID
	after := b.submit(jobs.Spec{DependsOn: []jobs.ID{c, a}, RunOnDepFail: true}).ID
	require.Equal(t, "dependency: waits for job "+string(a), b.get(c).Block.Code+": "+b.get(c).Block.Sentence)
	require.Equal(t, []jobs.ID{a}, b.ready())
	b.reopen()
	require.Equal(t, []jobs.ID{a}, b.ready())
	b.finish(b.admit(a), done)
	require.Equal(t, []jobs.ID{c}, b.ready())
	r := b.admit(c)
	whole, err := r.Resolve(b.ctx())
	require.NoError(t, err)
	require.Equal(t, `[2, 1.50]`, string(whole.Spec.Args))
	require.Equal(t, `{"deep":{"x":[{"a":[1,2]}]}}`, string(whole.Spec.Kwargs))
	require.Contains(t, string(b.get(c).Spec.Args), "$result", "shown as it was submitted")
	b.finish(r, jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "x"}})
	j, err := b.Wait(b.ctx(), chain)
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, j.Status)
	require.Contains(t, j.CancelReason, string(c))
	require.Equal(t, []jobs.ID{after}, b.ready())

	late := b.submit(jobs.Spec{DependsOn: []jobs.ID{c}}).ID // on one that failed already
	j, err = b.Wait(b.ctx(), late)
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, j.Status)

	bad := b.submit(jobs.Spec{DependsOn: []jobs.ID{a}, Args: json.RawMessage(fmt.Sprintf(`[{"$result":%q,"path":"/none"}]`, a))}).ID
	r = b.admit(bad)
	_, err = r.Resolve(b.ctx())
	var ref *jobs.RefError
	require.ErrorAs(t, err, &ref)
	require.ErrorContains(t, err, fmt.Sprintf(`result of job %s: path /none: no member "none"`, a))
	b.finish(r, done)

	_, err = b.Submit(b.ctx(), []jobs.Submission{
		{ID: "x", Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{"y"}}},
		{ID: "y", Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{"x"}}},
	})
	var invalid *jobs.InvalidError
	require.ErrorAs(t, err, &invalid, "a cycle")
	_, err = b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "e", Args: json.RawMessage(`[{"$result":"zz"}]`)}}})
	require.ErrorAs(t, err, &invalid, "a reference outside depends_on")
	out, err := b.Submit(b.ctx(), []jobs.Submission{
		{ID: "x", Spec: jobs.Spec{Instance: "e"}},
		{ID: "y", Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{"x"}}},
	})
	require.NoError(t, err)
	require.Equal(t, jobs.Blocked, out[1].Job.Phase)
	_, err = b.Cancel(b.ctx(), "x", "ann", "")
	require.NoError(t, err)
	j, err = b.Wait(b.ctx(), "y")
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, j.Status)
}
