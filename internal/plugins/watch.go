package plugins

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// quiet is how long a directory must be still before it is searched again:
	// an installer or a git checkout writes many files in a row.
	quiet = 100 * time.Millisecond
	// latest bounds that for a directory that is never still.
	latest = time.Second
)

// Run watches the search path and searches it again when something there
// changes. It searches once at its start, blocks until ctx ends and leaves
// nothing behind. Where directories cannot be watched it says so in the log,
// once, and Discover remains.
func (c *Catalog) Run(ctx context.Context) error {
	if c.o.NoWatch {
		<-ctx.Done()
		return nil
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return c.unwatched(ctx, err)
	}
	defer w.Close()
	parents, err := newParentWatch()
	if err != nil {
		return c.unwatched(ctx, err)
	}
	defer parents.close()
	l := &watchLoop{c: c, w: w, parents: parents, refused: map[string]bool{}}
	l.watch()
	if _, err := c.Discover(ctx); err != nil {
		return nil // only the context ends a search
	}
	return l.run(ctx)
}

// unwatched is Run where nothing can be watched.
func (c *Catalog) unwatched(ctx context.Context, err error) error {
	c.o.Log.Error("manifests are not watched: a change shows only after discover", zap.Error(err))
	<-ctx.Done()
	return nil
}

// watchLoop belongs to Run's goroutine.
type watchLoop struct {
	c       *Catalog
	w       *fsnotify.Watcher
	parents *parentWatch
	paths   []string        // the search path as last watched
	refused map[string]bool // directories whose watch failed, told once
}

func (l *watchLoop) run(ctx context.Context) error {
	still, deadline := time.NewTimer(quiet), time.Time{}
	still.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-l.w.Events:
			if !ok {
				return errors.New("cannot go on watching manifests: the watcher ended")
			}
			if !l.matters(ev) {
				continue
			}
		case err, ok := <-l.w.Errors:
			if !ok {
				return errors.New("cannot go on watching manifests: the watcher ended")
			}
			// Events may have been lost (queue overflow): search.
			l.c.o.Log.Warn("watching manifests", zap.Error(err))
		case <-l.parents.appeared:
		case <-l.c.rescan:
		case <-still.C:
			deadline = time.Time{}
			// Watch before searching: what appears in between makes an event.
			l.watch()
			if _, err := l.c.Discover(ctx); err != nil {
				return nil
			}
			continue
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(latest)
		}
		still.Reset(max(0, min(quiet, deadline.Sub(now))))
	}
}

// matters leaves out the noise of busy directories: a plugin's holds its caches.
func (l *watchLoop) matters(ev fsnotify.Event) bool {
	dir, moved := filepath.Dir(ev.Name), ev.Has(fsnotify.Create|fsnotify.Remove|fsnotify.Rename)
	for _, p := range l.paths {
		switch {
		case dir == p && (moved || isManifestName(ev.Name)):
			return true
		case filepath.Dir(dir) == p && isManifestName(ev.Name):
			return true
		case moved && (p == ev.Name || strings.HasPrefix(p, ev.Name+string(filepath.Separator))):
			return true
		}
	}
	return false
}

// watch makes the set of watched directories what it should be.
func (l *watchLoop) watch() {
	l.c.mu.RLock()
	l.paths = l.c.paths
	l.c.mu.RUnlock()
	wanted := map[string]bool{}
	l.parents.begin()
	for _, dir := range l.paths {
		l.watchPath(dir, wanted)
	}
	l.parents.finish()
	for _, have := range l.w.WatchList() {
		if !wanted[have] {
			_ = l.w.Remove(have) // gone already is as good
		}
	}
}

// watchPath watches dir and its subdirectories, or the nearest parent that
// exists. A parent is watched before its child is looked for, so a directory
// made meanwhile is seen or makes an event.
func (l *watchLoop) watchPath(dir string, wanted map[string]bool) {
	for at := dir; ; at = filepath.Dir(at) {
		if info, err := os.Stat(at); err != nil || !info.IsDir() {
			if at == filepath.Dir(at) {
				return
			}
			continue
		}
		if at == dir {
			if !l.add(at, wanted) {
				return
			}
			break
		}
		next := firstBelow(at, dir)
		if !l.told(at, l.parents.add(at, filepath.Base(next))) {
			return
		}
		if info, err := os.Stat(next); err == nil && info.IsDir() { // made since: begin again
			l.watchPath(dir, wanted)
		}
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the search tells
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); e.Name()[0] != '.' && isDir(path, e) {
			l.add(path, wanted)
		}
	}
}

// firstBelow is the path component of dir directly below parent.
func firstBelow(parent, dir string) string {
	for filepath.Dir(dir) != parent {
		dir = filepath.Dir(dir)
	}
	return dir
}

func (l *watchLoop) add(dir string, wanted map[string]bool) bool {
	wanted[dir] = true
	if slices.Contains(l.w.WatchList(), dir) {
		return true
	}
	return l.told(dir, l.w.Add(dir))
}

// told reports whether dir is watched, and says so in the log when it is not.
func (l *watchLoop) told(dir string, err error) bool {
	if err != nil && !errors.Is(err, os.ErrNotExist) && !l.refused[dir] {
		l.refused[dir] = true
		l.c.o.Log.Error("directory is not watched: a change of its manifests shows only after discover", zap.String("dir", dir), zap.Error(err))
	}
	return err == nil
}
