// Package pysdk carries the Python worker runtime, and the package that plugin
// authors import, inside the binary and puts them on disk where Python can
// import them. It knows no worker and starts nothing.
package pysdk

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"syscall"
)

//go:embed cjmworker/*.py cjmd/*.py cjmworker_check.py
var sources embed.FS

// Extract writes the runtime below dir and returns the directory to put on
// PYTHONPATH. The directory is named by its content: another version of the
// daemon gets another one, and workers of an older one keep theirs. A complete
// directory appears at once (rename); calling it again, or from several
// processes at a time, is fine. What was changed by hand is put right.
func Extract(dir string) (string, error) {
	files, sum, err := load()
	if err != nil {
		return "", err
	}
	target := filepath.Join(dir, "python-"+sum[:16])
	if same(target, files) {
		return target, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cannot make the directory of the Python runtime: %w", err)
	}
	fresh, err := os.MkdirTemp(dir, ".python-*")
	if err != nil {
		return "", fmt.Errorf("cannot make the directory of the Python runtime: %w", err)
	}
	defer func() { _ = os.RemoveAll(fresh) }()
	if err := write(fresh, files); err != nil {
		return "", err
	}
	return target, replace(fresh, target, files)
}

// Version is the content hash that names the extracted directory.
func Version() (string, error) {
	_, sum, err := load()
	return sum, err
}

// load returns path → content and one hash over both.
func load() (map[string][]byte, string, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(sources, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files[path], err = sources.ReadFile(path)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("cannot read the embedded Python runtime: %w", err)
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	hash := sha256.New()
	for _, name := range names {
		fmt.Fprintf(hash, "%s %d\n", name, len(files[name]))
		hash.Write(files[name])
	}
	return files, hex.EncodeToString(hash.Sum(nil)), nil
}

// same reports whether dir holds exactly these contents (Python adds caches of its own).
func same(dir string, files map[string][]byte) bool {
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil || !bytes.Equal(got, want) {
			return false
		}
	}
	return true
}

func write(dir string, files map[string][]byte) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("cannot write the Python runtime: %w", err)
	}
	for name, data := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("cannot write the Python runtime: %w", err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return fmt.Errorf("cannot write the Python runtime: %w", err)
		}
		// WriteFile's mode passes the umask; workers may run as another user.
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("cannot write the Python runtime: %w", err)
		}
	}
	return nil
}

// replace puts fresh in place of target. Another process may do the same now:
// whoever loses finds the same content there.
func replace(fresh, target string, files map[string][]byte) error {
	for range 3 {
		err := os.Rename(fresh, target)
		if err == nil || same(target, files) {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return fmt.Errorf("cannot install the Python runtime: %w", err)
		}
		// A damaged copy is in the way: move it aside, whole, then try again.
		aside, err := os.MkdirTemp(filepath.Dir(target), ".damaged-*")
		if err != nil {
			return fmt.Errorf("cannot install the Python runtime: %w", err)
		}
		if err := os.Rename(target, filepath.Join(aside, "python")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot install the Python runtime: %w", err)
		}
		if err := os.RemoveAll(aside); err != nil {
			return fmt.Errorf("cannot remove a damaged Python runtime: %w", err)
		}
	}
	return fmt.Errorf("cannot install the Python runtime: %s keeps changing", target)
}
