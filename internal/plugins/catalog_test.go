package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/cjmd/cjmd/internal/events"
)

// memory is an InstanceStore and a Recorder that keeps everything for the test.
type memory struct {
	mu        sync.Mutex
	instances map[string]Instance
	writes    []string // "created whisper"
	drafts    []events.Draft
	fail      error
}

func (m *memory) Instances(context.Context) ([]Instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.instances)), m.fail
}

func (m *memory) PutInstance(_ context.Context, inst Instance, event string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	m.instances[inst.ID] = inst
	m.writes = append(m.writes, event+" "+inst.ID)
	return nil
}

func (m *memory) DeleteInstance(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.instances, id)
	m.writes = append(m.writes, "deleted "+id)
	return m.fail
}

func (m *memory) Record(_ context.Context, drafts ...events.Draft) ([]events.Event, error) {
	m.Emit(drafts...)
	return nil, nil
}

func (m *memory) Emit(drafts ...events.Draft) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drafts = append(m.drafts, drafts...)
}

// told returns what was journalled since the last call: "plugin.changed speech ok".
func (m *memory) told() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, d := range m.drafts {
		out = append(out, string(d.Kind)+" "+d.Instance+" "+d.Data.(map[string]any)["state"].(string))
	}
	m.drafts = nil
	return out
}

type box struct {
	t     *testing.T
	root  string
	store *memory
	c     *Catalog
}

// setup makes a catalogue over <root>/a and <root>/b.
func setup(t *testing.T) *box {
	t.Helper()
	b := &box{t: t, root: t.TempDir(), store: &memory{instances: map[string]Instance{}}}
	b.c = b.open()
	return b
}

// open makes a catalogue over the same directories and store: a restart.
func (b *box) open() *Catalog {
	b.t.Helper()
	c, err := New(Options{
		Paths:   []string{filepath.Join(b.root, "a"), filepath.Join(b.root, "b")},
		EnvsDir: filepath.Join(b.root, "envs"),
		Store:   b.store, Journal: b.store, Log: zaptest.NewLogger(b.t, zaptest.Level(zap.ErrorLevel)),
	})
	require.NoError(b.t, err)
	return c
}

func (b *box) write(path, content string) string {
	b.t.Helper()
	path = filepath.Join(b.root, path)
	require.NoError(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(b.t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func (b *box) discover() []Plugin {
	b.t.Helper()
	list, err := b.c.Discover(b.t.Context())
	require.NoError(b.t, err)
	return list
}

// manifest is a small good one of our own format.
func manifest(name string, more ...string) string {
	return "name: " + name + "\nmodule: m\nclass: C\npython_path: /usr/bin/python3\n" + strings.Join(more, "\n") + "\n"
}

const modelSchema = `config_schema: {type: object, properties: {model: {type: string, default: base, enum: [base, big]}, beam: {type: integer, default: 5, minimum: 1}}}`

func TestCatalog_SearchesInOrderAndListsEverything(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.write("a/speech.yaml", manifest("speech", "version: '1'"))
	b.write("a/tool/manifest.yml", manifest("tool"))
	b.write("a/other/plugin.json", `{"name":"other","module":"m","class":"C","python_path":"/p"}`)
	b.write("a/broken.json", `{"name":"broken","module":"m"}`)
	b.write("a/.hidden.yaml", "not a manifest")
	b.write("a/plugins.yaml", "plugins: []\n")
	b.write("a/readme.txt", "no manifest")
	b.write("a/deep/er/manifest.yaml", manifest("too-deep"))
	b.write("a/vad.json", `{"unit":"adapter","name":"adapter-vad"}`)
	shadowed := b.write("b/speech.yaml", manifest("speech", "version: '2'"))
	b.write("b/broken.yaml", manifest("broken"))

	list := b.discover()
	var got []string
	for _, p := range list {
		state := "ok"
		switch {
		case p.Err != nil:
			state = "bad"
		case p.Shadowed != "":
			state = "shadowed"
		}
		got = append(got, p.Name+" "+state)
	}
	require.Equal(t, []string{"broken ok", "broken bad", "other ok", "speech ok", "speech shadowed", "tool ok"}, got)
	p, err := b.c.Plugin("speech")
	require.NoError(t, err)
	require.Equal(t, first, p.Path)
	require.Equal(t, first, list[4].Shadowed)
	require.Equal(t, shadowed, list[4].Path)
	require.Equal(t, "adapter-vad", b.c.Adapters()[0].Name)

	_, err = b.c.Plugin("speach")
	var nf *NotFoundError
	require.ErrorAs(t, err, &nf)
	require.Equal(t, "speech", nf.Nearest)
	_, err = b.c.Plugin("adapter-vad")
	require.ErrorAs(t, err, &nf)
}

func TestCatalog_ABadFileIsAnEntryWithItsError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/bad.yaml", "name: bad\nmodul: m\n")
	require.NoError(t, os.Symlink("/nonexistent", filepath.Join(b.root, "a", "dangling.json")))
	require.NoError(t, os.Mkdir(filepath.Join(b.root, "a", "dir.json"), 0o755)) // a directory, not a file
	b.write("b", "a file where a directory should be")

	list := b.discover()
	require.Len(t, list, 3)
	for _, p := range list {
		require.Error(t, p.Err, p.Name)
		require.Nil(t, p.Manifest)
	}
	_, _, err := b.c.Instance("bad")
	var me *ManifestError
	require.ErrorAs(t, err, &me)
	require.ErrorContains(t, err, `modul is no known key (did you mean "module"?)`)
	require.Empty(t, b.c.Instances())
}

func TestCatalog_JournalsOnlyDifferences(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one"))
	two := b.write("a/two.yaml", "name: two\n")
	b.discover()
	require.Equal(t, []string{"plugin.discovered one ok", "plugin.discovered two error"}, b.store.told())
	b.discover()
	require.Empty(t, b.store.told())

	b.write("a/two.yaml", manifest("two"))
	b.write("a/one.yaml", "# only the layout differs\n"+manifest("one"))
	b.discover()
	require.Equal(t, []string{"plugin.changed two ok"}, b.store.told())

	require.NoError(t, os.Remove(two))
	b.discover()
	require.Equal(t, []string{"plugin.changed two removed"}, b.store.told())
	<-b.c.Changed()
	select {
	case <-b.c.Changed():
		t.Fatal("wake-ups do not merge")
	default:
	}
}

func TestCatalog_FoundAtStaysWhileTheFileDoes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one"))
	first := b.discover()[0].FoundAt
	require.Equal(t, first, b.discover()[0].FoundAt)
	b.write("a/one.yaml", manifest("one", "version: '2'"))
	require.True(t, b.discover()[0].FoundAt.After(first))
}

func TestCatalog_DriftLastsUntilTheWorkerIsStartedAnew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one"))
	b.discover()
	inst, man, err := b.c.Instance("one")
	require.NoError(t, err)
	b.c.MarkStarted(inst.ID, man.Hash)
	b.store.told()
	require.False(t, b.discover()[0].Drifted)

	b.write("a/one.yaml", manifest("one", "version: '2'"))
	require.True(t, b.discover()[0].Drifted)
	require.Equal(t, []string{"plugin.changed one drifted"}, b.store.told())

	_, man, err = b.c.Instance("one")
	require.NoError(t, err)
	b.c.MarkStarted(inst.ID, man.Hash)
	require.False(t, b.c.Plugins()[0].Drifted)
	b.c.MarkStarted(inst.ID, "0")
	require.True(t, b.c.Plugins()[0].Drifted)
	b.c.MarkStarted(inst.ID, "")
	require.False(t, b.c.Plugins()[0].Drifted)
}

func TestCatalog_ImplicitInstanceUntilWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	inst, _, err := b.c.Instance("one")
	require.NoError(t, err)
	require.True(t, inst.Enabled)
	require.Zero(t, inst.Revision)
	require.JSONEq(t, `{"model":"base","beam":5}`, string(inst.Config))
	require.Empty(t, b.store.writes)
	var implicit *ImplicitError
	require.ErrorAs(t, b.c.DeleteInstance(t.Context(), "one"), &implicit)

	_, err = b.c.SetEnabled(t.Context(), "one", true) // as it is: nothing to write
	require.NoError(t, err)
	require.Empty(t, b.store.writes)
	inst, err = b.c.SetEnabled(t.Context(), "one", false)
	require.NoError(t, err)
	require.EqualValues(t, 1, inst.Revision)
	require.False(t, inst.UpdatedAt.IsZero())
	require.Equal(t, []string{"updated one"}, b.store.writes)

	again := b.open() // a restart
	_, err = again.Discover(t.Context())
	require.NoError(t, err)
	inst, _, err = again.Instance("one")
	require.NoError(t, err)
	require.False(t, inst.Enabled)

	require.NoError(t, b.c.DeleteInstance(t.Context(), "one"))
	inst, _, err = b.c.Instance("one")
	require.NoError(t, err)
	require.True(t, inst.Enabled)
}

func TestCatalog_SetConfigReplacesChecksAndPersists(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	inst, issues, err := b.c.SetConfig(t.Context(), "one", json.RawMessage(`{"model":"big","beam":"7"}`))
	require.NoError(t, err)
	require.Equal(t, []Issue{{"/beam", "beam: expected integer, got string", true, ""}}, issues)
	require.JSONEq(t, `{"model":"big","beam":"7"}`, string(inst.Config))

	_, _, err = b.c.SetConfig(t.Context(), "one", json.RawMessage(`{"model":"huge","beem":1,"beam":0}`))
	var ce *ConfigError
	require.ErrorAs(t, err, &ce)
	require.Len(t, ce.Issues, 3)
	_, _, err = b.c.SetConfig(t.Context(), "one", json.RawMessage(`[]`))
	require.ErrorAs(t, err, &ce)
	inst, _, err = b.c.Instance("one")
	require.NoError(t, err)
	require.JSONEq(t, `{"model":"big","beam":"7"}`, string(inst.Config), "a refused update changes nothing")

	inst, _, err = b.c.SetConfig(t.Context(), "one", json.RawMessage(`{"beam":2}`))
	require.NoError(t, err)
	require.JSONEq(t, `{"model":"base","beam":2}`, string(inst.Config), "what is missing gets its default, not the old value")
	require.EqualValues(t, 2, inst.Revision)

	issues, err = b.c.CheckConfig("one", json.RawMessage(`{"beam":0}`))
	require.NoError(t, err)
	require.Equal(t, []Issue{{"/beam", "beam: 0 is less than minimum 1", false, "beam: must be at least 1"}}, issues)

	// The schema grows: the stored configuration gets the new default.
	b.write("a/one.yaml", manifest("one", `config_schema: {properties: {beam: {default: 5}, temperature: {default: 0.5}, model: {default: base}}}`))
	b.discover()
	inst, _, err = b.c.Instance("one")
	require.NoError(t, err)
	require.JSONEq(t, `{"model":"base","beam":2,"temperature":0.5}`, string(inst.Config))
}

func TestCatalog_FurtherInstances(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	ctx := t.Context()
	inst, err := b.c.CreateInstance(ctx, Instance{ID: "one-big", Plugin: "one", Enabled: true, Config: json.RawMessage(`{"model":"big"}`), Revision: 77})
	require.NoError(t, err)
	require.EqualValues(t, 1, inst.Revision)
	require.JSONEq(t, `{"model":"big","beam":5}`, string(inst.Config))
	require.Equal(t, []string{"created one-big"}, b.store.writes)

	var exists *ExistsError
	for _, id := range []string{"one-big", "one"} {
		_, err = b.c.CreateInstance(ctx, Instance{ID: id, Plugin: "one"})
		require.ErrorAs(t, err, &exists, id)
	}
	var bad *NameError
	for _, id := range []string{"", "a/b", "..", ".x", strings.Repeat("x", 65)} {
		_, err = b.c.CreateInstance(ctx, Instance{ID: id, Plugin: "one"})
		require.ErrorAs(t, err, &bad, id)
	}
	var nf *NotFoundError
	_, err = b.c.CreateInstance(ctx, Instance{ID: "x", Plugin: "two"})
	require.ErrorAs(t, err, &nf)
	var ce *ConfigError
	_, err = b.c.CreateInstance(ctx, Instance{ID: "x", Plugin: "one", Config: json.RawMessage(`{"model":"none"}`)})
	require.ErrorAs(t, err, &ce)

	limits, pinned, slots := Limits{MemoryMaxMB: 10}, true, 4
	inst, err = b.c.Update(ctx, "one-big", Settings{Limits: &limits, Pinned: &pinned, Concurrency: &slots})
	require.NoError(t, err)
	require.Equal(t, &limits, inst.Limits)
	require.True(t, inst.Pinned && inst.Enabled)
	require.Equal(t, 4, inst.Concurrency)

	var ids []string
	for _, i := range b.c.Instances() {
		ids = append(ids, i.ID)
	}
	require.Equal(t, []string{"one", "one-big"}, ids)
	require.NoError(t, b.c.DeleteInstance(ctx, "one-big"))
	require.ErrorAs(t, b.c.DeleteInstance(ctx, "one-big"), &nf)
}

func TestCatalog_AnInstanceOutlivesItsManifest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	_, _, err := b.c.SetConfig(t.Context(), "one", json.RawMessage(`{"beam":2}`))
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	b.discover()

	inst, _, err := b.c.Instance("one")
	var nf *NotFoundError
	require.ErrorAs(t, err, &nf)
	require.Equal(t, "one", inst.ID)
	require.Len(t, b.c.Instances(), 1)
	_, err = b.c.SetEnabled(t.Context(), "one", false) // settings can still be changed
	require.NoError(t, err)
	_, _, err = b.c.SetConfig(t.Context(), "one", json.RawMessage(`{"beam":3}`))
	require.ErrorAs(t, err, &nf)

	b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	inst, _, err = b.c.Instance("one")
	require.NoError(t, err)
	require.False(t, inst.Enabled)
	require.JSONEq(t, `{"model":"base","beam":2}`, string(inst.Config))
}

func TestCatalog_AFailedWriteChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	b.store.fail = errors.New("disk full")
	_, err := b.c.SetEnabled(t.Context(), "one", false)
	require.ErrorContains(t, err, "disk full")
	inst, _, err := b.c.Instance("one")
	require.NoError(t, err)
	require.True(t, inst.Enabled)
	_, err = New(Options{Store: b.store, Journal: b.store, Log: zap.NewNop()})
	require.ErrorContains(t, err, "disk full")
	_, err = New(Options{})
	require.Error(t, err)
}

func TestCatalog_ConcurrentChangesLoseNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one", modelSchema))
	b.discover()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { _, _, _ = b.c.SetConfig(t.Context(), "one", json.RawMessage(`{"beam":3}`)) })
		wg.Go(func() { _, _ = b.c.Update(t.Context(), "one", Settings{}) })
		wg.Go(func() { _, _ = b.c.Discover(t.Context()) })
		wg.Go(func() { b.c.Plugins(); b.c.Instances(); b.c.MarkStarted("one", "x") })
	}
	wg.Wait()
	inst, _, err := b.c.Instance("one")
	require.NoError(t, err)
	require.EqualValues(t, 40, inst.Revision)
	require.JSONEq(t, `{"model":"base","beam":3}`, string(inst.Config))
}

func TestCatalog_ResolvesTheEnvironmentWhenItIsThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", "name: one\nmodule: m\nclass: C\nenv: {requirements: [numpy]}\n")
	b.write("a/sh.yaml", "name: sh\ncommand: [sh, -c, exit]\n")
	b.write("a/gone.yaml", "name: gone\ncommand: [no-such-program-here]\n")
	b.discover()
	_, man, err := b.c.Instance("one")
	require.NoError(t, err)
	var unusable *UnusableError
	require.ErrorAs(t, Runnable(man), &unusable)
	require.Equal(t, FindingNoProgram, unusable.Finding.Code)
	require.ErrorContains(t, Runnable(man), "it has no environment; run: cjm-ctl install-all -f "+man.Path)

	python := b.write("envs/one/bin/python", "")
	_, man, err = b.c.Instance("one") // no search needed
	require.NoError(t, err)
	require.Equal(t, python, man.PythonPath)
	require.NoError(t, Runnable(man))

	_, man, err = b.c.Instance("sh")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(man.Command[0]), man.Command[0])
	require.Equal(t, []string{"-c", "exit"}, man.Command[1:])
	require.NoError(t, Runnable(man))
	_, man, err = b.c.Instance("gone")
	require.NoError(t, err)
	require.ErrorContains(t, Runnable(man), "no-such-program-here is not there")
}

func TestCatalog_DiscoverEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	unlock, err := b.c.lockWrites(t.Context()) // somebody writes
	require.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.c.Discover(ctx)
	require.ErrorIs(t, err, context.Canceled)
	_, err = b.c.SetEnabled(ctx, "x", true)
	require.ErrorIs(t, err, context.Canceled)
}

func TestDefaultPaths(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{
		"/mine", "/w/.cjm/plugins", "/w/.cjm/manifests", "/home/u/.config/cjmd/plugins", "/home/u/.cjm/plugins", "/home/u/.cjm/manifests",
		"/etc/cjmd/plugins", "/usr/local/share/cjmd/plugins", "/usr/share/cjmd/plugins",
	}, DefaultPaths([]string{"/mine", "/mine/"}, "/w", "/home/u", "/home/u/.config/cjmd"))
	require.Equal(t, []string{"/etc/cjmd/plugins", "/usr/local/share/cjmd/plugins", "/usr/share/cjmd/plugins"}, DefaultPaths(nil, "", "", "/etc/cjmd"))
}

func TestCatalog_APluginWithoutRequirementsRunsOnAnyPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	require.NoError(t, err)
	for name, tc := range map[string]struct{ env, want string }{
		"no environment named":     {"", python},
		"empty requirements":       {"env: {requirements: []}\n", python},
		"requirements":             {"env: {requirements: [numpy]}\n", ""},
		"an interpreter of a kind": {"env: {python: \"3.12\"}\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := setup(t)
			b.write("a/p.yaml", "name: p\nmodule: m\nclass: C\n"+tc.env)
			b.discover()
			_, man, err := b.c.Instance("p")
			require.NoError(t, err)
			require.Equal(t, tc.want, man.PythonPath)
		})
	}
}
