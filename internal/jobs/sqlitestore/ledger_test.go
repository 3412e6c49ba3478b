package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

var then = time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)

func profile(plugin, config string, vram resource.Bytes) learn.Profile {
	p := learn.New(learn.Key{Plugin: plugin, ConfigHash: learn.ConfigHash([]byte(config)), DeviceModel: "H100"})
	p.Observe(learn.Sample{Phase: learn.Load, At: then, Duration: time.Second, VRAM: vram, Source: learn.SourceNVML})
	return p
}

func claim(owner, kind string, mb float64) resource.ClaimRecord {
	return resource.ClaimRecord{Owner: owner, Kind: kind, Instance: "whisper", Device: "GPU-1", Bytes: resource.FromMB(mb), Phase: "reserved", Since: then}
}

// kinds returns the events so far.
func kinds(t *testing.T, st *sqlitestore.Store) (out []events.Kind) {
	t.Helper()
	evs, err := st.EventsSince(t.Context(), 0, events.Filter{}, 1000)
	require.NoError(t, err)
	for _, e := range evs {
		out = append(out, e.Kind)
	}
	return out
}

func draft(kind events.Kind) events.Draft { return events.Draft{Kind: kind} }

func TestProfiles_RoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st := openStore(t, dir)
	ctx := t.Context()
	a, b, other := profile("a", `{"size":"large"}`, 10<<30), profile("a", `{"size":"small"}`, 2<<30), profile("b", ``, 1<<30)
	for _, p := range []learn.Profile{a, b, other} {
		require.NoError(t, st.PutProfile(ctx, p, draft("profile.changed")))
	}
	a.OOM(learn.OOM{Phase: learn.Load, At: then.Add(time.Minute)})
	_, err := st.StoreProfile(a, draft("profile.changed")).Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, st.Close())

	st = openStore(t, dir)
	got, err := st.Profiles(ctx)
	require.NoError(t, err)
	require.ElementsMatch(t, []learn.Profile{a, b, other}, got)
	n, err := st.DeleteProfiles(ctx, "a", draft("profile.changed"))
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = st.DeleteProfiles(ctx, "a", draft("profile.changed"))
	require.NoError(t, err)
	require.Zero(t, n)
	got, err = st.Profiles(ctx)
	require.NoError(t, err)
	require.Equal(t, []learn.Profile{other}, got)
	require.Len(t, kinds(t, st), 5, "deleting nothing is no event")
}

// A config that changes all day leaves no heap of profiles behind.
func TestProfiles_OfEachPluginOnlyTheNewestAreKept(t *testing.T) {
	t.Parallel()
	st := openStore(t, t.TempDir())
	ctx := t.Context()
	require.NoError(t, st.PutProfile(ctx, profile("b", ``, 1)))
	config := func(i int) string { return fmt.Sprintf(`{"n":%d}`, i) }
	for i := range learn.MaxPerPlugin {
		st.StoreProfile(profile("a", config(i), 1))
	}
	st.StoreProfile(profile("a", config(0), 2)) // in use again
	require.NoError(t, st.PutProfile(ctx, profile("a", config(-1), 1)))
	require.NoError(t, st.PutProfile(ctx, profile("a", config(-2), 1)))
	got, err := st.Profiles(ctx)
	require.NoError(t, err)
	require.Len(t, got, learn.MaxPerPlugin+1)
	have := map[string]learn.Profile{}
	for _, p := range got {
		have[p.ConfigHash] = p
	}
	require.NotContains(t, have, learn.ConfigHash([]byte(config(1))))
	require.NotContains(t, have, learn.ConfigHash([]byte(config(2))))
	for _, i := range []int{0, 3, learn.MaxPerPlugin - 1, -1, -2} {
		require.Contains(t, have, learn.ConfigHash([]byte(config(i))))
	}
	require.EqualValues(t, 2, have[learn.ConfigHash([]byte(config(0)))].ResidentVRAM.Max)
}

func TestClaims_AreReplacedByOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st := openStore(t, dir)
	ctx := t.Context()
	resident, execute := claim("whisper", "resident", 1024), claim("job-1", "execute", 512)
	gone := resident
	gone.Phase, gone.Since = "quarantined", time.Time{}
	require.NoError(t, st.PutClaims(ctx, "whisper", []resource.ClaimRecord{resident, gone}, draft("scheduler.quarantined")))
	require.NoError(t, st.PutClaims(ctx, "job-1", []resource.ClaimRecord{execute}))
	require.Error(t, st.PutClaims(ctx, "job-1", []resource.ClaimRecord{resident}), "not its own")
	require.NoError(t, st.Close())

	st = openStore(t, dir)
	got, err := st.Claims(ctx)
	require.NoError(t, err)
	require.Equal(t, []resource.ClaimRecord{resident, gone, execute}, got)
	resident.Phase = "loading"
	require.NoError(t, st.PutClaims(ctx, "whisper", []resource.ClaimRecord{resident}))
	require.NoError(t, st.DeleteClaims(ctx, "job-1"))
	require.NoError(t, st.DeleteClaims(ctx, "job-1"))
	got, err = st.Claims(ctx)
	require.NoError(t, err)
	require.Equal(t, []resource.ClaimRecord{resident}, got)
	require.Equal(t, []events.Kind{"scheduler.quarantined"}, kinds(t, st))
}

// The loop does not wait; what it asked for last holds.
func TestClaims_QueuedOnesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	st := openStore(t, t.TempDir())
	for i := range 200 {
		st.StoreClaims("w", []resource.ClaimRecord{claim("w", "resident", float64(i))})
		if i%3 == 0 {
			st.StoreClaims("w", nil)
		}
	}
	_, err := st.StoreClaims("w", []resource.ClaimRecord{claim("w", "resident", 7)}).Wait(t.Context())
	require.NoError(t, err)
	got, err := st.Claims(t.Context())
	require.NoError(t, err)
	require.Equal(t, []resource.ClaimRecord{claim("w", "resident", 7)}, got)
}

func TestLeases_RoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st := openStore(t, dir)
	ctx := t.Context()
	game := resource.Lease{ID: "l1", Device: "GPU-1", Bytes: 8 << 30, Holder: "anna", Note: "a game", CreatedAt: then, ExpiresAt: then.Add(2 * time.Hour)}
	open := resource.Lease{ID: "l0", Device: resource.HostDevice, Bytes: 1 << 30, Holder: "bert", CreatedAt: then.Add(time.Second)}
	require.NoError(t, st.PutLease(ctx, game, draft("lease.created")))
	require.NoError(t, st.PutLease(ctx, open, draft("lease.created")))
	game.ExpiresAt = then.Add(3 * time.Hour)
	require.NoError(t, st.PutLease(ctx, game))
	require.NoError(t, st.Close())

	st = openStore(t, dir)
	got, err := st.Leases(ctx)
	require.NoError(t, err)
	require.Equal(t, []resource.Lease{game, open}, got)
	_, err = st.StoreLeaseEnd("l1", draft("lease.ended")).Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, st.DeleteLease(ctx, "l1", draft("lease.ended")))
	got, err = st.Leases(ctx)
	require.NoError(t, err)
	require.Equal(t, []resource.Lease{open}, got)
	require.Equal(t, []events.Kind{"lease.created", "lease.created", "lease.ended"}, kinds(t, st), "each told once")
}

func TestLedger_NothingIsWrittenAfterClose(t *testing.T) {
	t.Parallel()
	st := openStore(t, t.TempDir())
	require.NoError(t, st.Close())
	ctx := context.Background()
	require.ErrorContains(t, st.PutClaims(ctx, "w", []resource.ClaimRecord{claim("w", "resident", 1)}), `cannot store the claims of "w"`)
	require.Error(t, st.PutLease(ctx, resource.Lease{ID: "l"}))
	require.Error(t, st.PutProfile(ctx, profile("a", ``, 1)))
	_, err := st.DeleteProfiles(ctx, "a")
	require.Error(t, err)
	_, err = st.Claims(ctx)
	require.ErrorContains(t, err, "cannot read claims")
}

func TestLedger_EventThatCannotBeEncodedStoresNothing(t *testing.T) {
	t.Parallel()
	st := openStore(t, t.TempDir())
	bad := events.Draft{Kind: "lease.created", Data: make(chan int)}
	require.ErrorContains(t, st.PutLease(t.Context(), resource.Lease{ID: "l"}, bad), "lease.created")
	got, err := st.Leases(t.Context())
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestProfiles_ThatCannotBeReadAreAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st := openStore(t, dir)
	require.NoError(t, st.PutProfile(t.Context(), profile("whisper", ``, 1)))
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "cjmd.db")+"?_busy_timeout=5000")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Exec(`UPDATE profiles SET data = 'x'`)
	require.NoError(t, err)
	_, err = st.Profiles(t.Context())
	require.ErrorContains(t, err, "profile of whisper")
}

// What version 1 wrote is all there, with room for what is new.
func TestMigration_FromVersion1KeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "cjmd.db"))
	require.NoError(t, err)
	dump, err := os.ReadFile(filepath.Join("testdata", "schema-1.sql"))
	require.NoError(t, err)
	_, err = db.Exec(string(dump))
	require.NoError(t, err)
	require.NoError(t, db.Close())

	st := openStore(t, dir)
	ctx := t.Context()
	j, err := st.Get(ctx, "old")
	require.NoError(t, err)
	require.JSONEq(t, `[1]`, string(j.Spec.Args))
	insts, err := st.Instances(ctx)
	require.NoError(t, err)
	require.Len(t, insts, 1)
	require.JSONEq(t, `{"size":"large"}`, string(insts[0].Config))
	require.Equal(t, []events.Kind{"job.submitted"}, kinds(t, st))
	v, err := st.Setting(ctx, "policy")
	require.NoError(t, err)
	require.Equal(t, "queue", v)
	for _, empty := range []func() (int, error){
		func() (int, error) { v, err := st.Profiles(ctx); return len(v), err },
		func() (int, error) { v, err := st.Claims(ctx); return len(v), err },
		func() (int, error) { v, err := st.Leases(ctx); return len(v), err },
	} {
		n, err := empty()
		require.NoError(t, err)
		require.Zero(t, n)
	}
	require.NoError(t, st.PutClaims(ctx, "w", []resource.ClaimRecord{claim("w", "resident", 1)}, draft("scheduler.evicting")))
	require.Equal(t, []events.Kind{"job.submitted", "scheduler.evicting"}, kinds(t, st))
	require.FileExists(t, filepath.Join(dir, "cjmd.db.schema-1.bak"))
}

func TestMigration_FromVersion2KeepsLeasesAndInstances(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "cjmd.db"))
	require.NoError(t, err)
	dump, err := os.ReadFile(filepath.Join("testdata", "schema-2.sql"))
	require.NoError(t, err)
	_, err = db.Exec(string(dump))
	require.NoError(t, err)
	require.NoError(t, db.Close())

	st := openStore(t, dir)
	leases, err := st.Leases(t.Context())
	require.NoError(t, err)
	require.Len(t, leases, 1)
	insts, err := st.Instances(t.Context())
	require.NoError(t, err)
	require.Len(t, insts, 1)
	require.Nil(t, insts[0].Placement)
	insts[0].Placement = &plugins.Placement{Pin: []string{"1"}}
	require.NoError(t, st.PutInstance(t.Context(), insts[0], "updated"))
	insts, err = st.Instances(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"1"}, insts[0].Placement.Pin)
	require.FileExists(t, filepath.Join(dir, "cjmd.db.schema-2.bak"))
}

func TestMigration_FromVersion3KeepsJobsAndWhatTheyDependOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "cjmd.db"))
	require.NoError(t, err)
	dump, err := os.ReadFile(filepath.Join("testdata", "schema-3.sql"))
	require.NoError(t, err)
	_, err = db.Exec(string(dump))
	require.NoError(t, err)
	require.NoError(t, db.Close())

	st := openStore(t, dir)
	j, err := st.Get(t.Context(), "second")
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"first"}, j.Spec.DependsOn)
	require.Empty(t, j.Spec.Task)
	ids, err := st.Prune(t.Context(), 0, time.Now(), 10)
	require.NoError(t, err)
	require.Empty(t, ids, "second needs first")
	j.ID, j.Spec.Task, j.Spec.Method = "third", "index", "add"
	_, err = st.Write(jobs.Write{Insert: []jobs.NewJob{{Job: j}}}).Wait(t.Context())
	require.NoError(t, err)
	third, err := st.Get(t.Context(), "third")
	require.NoError(t, err)
	require.Equal(t, "index/add", third.Spec.Task+"/"+third.Spec.Method)
	require.FileExists(t, filepath.Join(dir, "cjmd.db.schema-3.bak"))
}
