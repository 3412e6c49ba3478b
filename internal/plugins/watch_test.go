package plugins

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// watching runs the catalogue until the test ends.
func watching(t *testing.T, b *box) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

// until waits for wake-ups until ok says so.
func until(t *testing.T, b *box, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-b.c.Changed():
		case <-timeout:
			t.Fatal("the change was not noticed")
		}
	}
}

func (b *box) usable(name string) func() bool {
	return func() bool {
		p, err := b.c.Plugin(name)
		return err == nil && p.Err == nil
	}
}

func TestWatch_SeesManifestsComeChangeAndGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/one.yaml", manifest("one"))
	watching(t, b)
	until(t, b, b.usable("one")) // Run searches by itself

	b.write("a/two.yaml", manifest("two"))
	until(t, b, b.usable("two"))
	sub := b.write("a/three/manifest.yaml", manifest("three")) // a new subdirectory
	until(t, b, b.usable("three"))

	_, man, err := b.c.Instance("three")
	require.NoError(t, err)
	b.c.MarkStarted("three", man.Hash)
	require.NoError(t, os.WriteFile(sub, []byte(manifest("three", "version: '2'")), 0o600))
	until(t, b, func() bool { p, err := b.c.Plugin("three"); return err == nil && p.Drifted })

	// As editors do: written aside and renamed.
	aside := b.write("a/.one.yaml.tmp", "name: one\n")
	require.NoError(t, os.Rename(aside, filepath.Join(b.root, "a", "one.yaml")))
	until(t, b, func() bool { return !b.usable("one")() })

	require.NoError(t, os.RemoveAll(filepath.Dir(sub)))
	until(t, b, func() bool { _, err := b.c.Plugin("three"); return err != nil })
}

func TestWatch_DirectoriesThatDoNotExistYet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.c.SetPaths(t.Context(), []string{filepath.Join(b.root, "x", "y", "plugins")}))
	watching(t, b)
	b.write("x/y/plugins/one/manifest.yaml", manifest("one"))
	until(t, b, b.usable("one"))

	require.NoError(t, os.RemoveAll(filepath.Join(b.root, "x")))
	until(t, b, func() bool { return !b.usable("one")() })
	b.write("x/y/plugins/one.yaml", manifest("one"))
	until(t, b, b.usable("one"))
}

func TestWatch_FollowsANewSearchPath(t *testing.T) {
	t.Parallel()
	b := setup(t)
	watching(t, b)
	b.write("c/one.yaml", manifest("one"))
	require.NoError(t, b.c.SetPaths(t.Context(), []string{filepath.Join(b.root, "c")}))
	require.True(t, b.usable("one")(), "SetPaths searches at once")
	b.write("c/two.yaml", manifest("two"))
	until(t, b, b.usable("two"))
}

func TestWatch_CanBeOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.c.o.NoWatch = true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, b.c.Run(ctx))
	require.Empty(t, b.c.Plugins())
}

// Seen: a daemon started in its own state directory, where ./.cjm/plugins does
// not exist, heard of every write of its database, 33 times for each job.
func TestWatch_BusyParentOfAMissingDirectoryIsNotHeard(t *testing.T) {
	t.Parallel()
	w, err := newParentWatch()
	require.NoError(t, err)
	defer w.close()
	dir := t.TempDir()
	busy, err := os.Create(filepath.Join(dir, "cjmd.db-wal"))
	require.NoError(t, err)
	defer func() { require.NoError(t, busy.Close()) }()
	w.begin()
	require.NoError(t, w.add(dir, "plugins"))
	w.finish()

	heard := func() bool {
		select {
		case <-w.appeared:
			return true
		default:
			return false
		}
	}
	for range 100 {
		_, err := busy.WriteString("page")
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
	require.False(t, heard())
	require.NoError(t, os.Mkdir(filepath.Join(dir, "plugins"), 0o700))
	<-w.appeared // the events come in order: nothing before this one was told
	require.False(t, heard())
}
