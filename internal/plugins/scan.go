package plugins

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultPaths is the whole search path, first wins: the configured ones, the
// project's in the working directory, the user's and the system's. home and
// configDir may be empty.
func DefaultPaths(configured []string, cwd, home, configDir string) []string {
	paths := slices.Clone(configured)
	if cwd != "" {
		paths = append(paths, filepath.Join(cwd, ".cjm", "plugins"), filepath.Join(cwd, ".cjm", "manifests"))
	}
	if configDir != "" {
		paths = append(paths, filepath.Join(configDir, "plugins"))
	}
	if home != "" {
		paths = append(paths, filepath.Join(home, ".cjm", "plugins"), filepath.Join(home, ".cjm", "manifests"))
	}
	paths = append(paths, "/etc/cjmd/plugins", "/usr/local/share/cjmd/plugins", "/usr/share/cjmd/plugins")
	return uniquePaths(paths)
}

// uniquePaths makes paths absolute and drops those that name a directory again.
func uniquePaths(paths []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, p := range paths {
		if p == "" {
			continue
		}
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		key := p
		if real, err := filepath.EvalSymlinks(p); err == nil {
			key = real
		}
		if !seen[key] {
			seen[key] = true
			out = append(out, p)
		}
	}
	return out
}

// found is what one scan saw, in the order of the search path.
type found struct {
	plugins  []Plugin
	adapters []Plugin
}

// scan reads every manifest on the path. It never fails as a whole: what
// cannot be read is an entry with its error.
func scan(paths []string, now time.Time) found {
	var out found
	winners := map[string]string{}
	for _, dir := range paths {
		files, err := manifestFiles(dir)
		if err != nil {
			out.plugins = append(out.plugins, Plugin{Name: filepath.Base(dir), Path: dir, Err: err, FoundAt: now})
		}
		for _, path := range files {
			p, err := readManifest(path)
			p.FoundAt = now
			switch {
			case errors.Is(err, errAdapter):
				out.adapters = append(out.adapters, p)
				continue
			case err != nil:
				p.Err = err
			case winners[p.Name] != "":
				p.Shadowed = winners[p.Name]
			default:
				winners[p.Name] = path
			}
			out.plugins = append(out.plugins, p)
		}
	}
	return out
}

// ReadManifest reads one manifest file. Errors as ParseManifest's, or the disk's.
func ReadManifest(path string) (*Manifest, error) {
	content, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	return ParseManifest(path, content)
}

// readManifest reads one file; the entry has a name whatever happens.
func readManifest(path string) (Plugin, error) {
	p := Plugin{Path: path, Name: nameOf(path)}
	content, err := readBounded(path)
	if err != nil {
		return p, err
	}
	m, err := ParseManifest(path, content)
	if m.Name != "" && (ValidName(m.Name) || errors.Is(err, errAdapter)) {
		p.Name = m.Name
	}
	p.Manifest = m
	if err != nil && !errors.Is(err, errAdapter) {
		p.Manifest = nil
	}
	return p, err
}

// nameOf is how a file is listed that does not say its name.
func nameOf(path string) string {
	base := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	if base == "manifest" || base == "plugin" {
		return filepath.Base(filepath.Dir(path))
	}
	return base
}

// readBounded refuses what is no plain file (a pipe would block for ever) and
// what is too large to be a manifest.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read manifest: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read manifest %s: it is no plain file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read manifest: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read manifest: %w", err)
	}
	return content, nil
}

// installerFiles lie beside manifests and are read by install-all.
var installerFiles = []string{"plugins.yaml", "plugins.yml", "capabilities.yaml", "capabilities.yml"}

// manifestFiles lists the candidates in dir, sorted: plain files, then one
// level of subdirectories. A directory that does not exist is empty.
func manifestFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot search for manifests: %w", err)
	}
	var files, subs []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		switch {
		case isDir(path, e):
			for _, base := range []string{"manifest", "plugin"} {
				for _, ext := range []string{".json", ".yaml", ".yml"} {
					if _, err := os.Stat(filepath.Join(path, base+ext)); err == nil {
						subs = append(subs, filepath.Join(path, base+ext))
					}
				}
			}
		case isManifestName(e.Name()):
			files = append(files, path)
		}
	}
	return append(files, subs...), nil
}

func isManifestName(path string) bool {
	name := filepath.Base(path)
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json", ".yaml", ".yml":
		return !slices.Contains(installerFiles, strings.ToLower(name))
	}
	return false
}

// isDir follows symbolic links.
func isDir(path string, e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.IsDir()
	}
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
