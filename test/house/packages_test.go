package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/cjmd/cjmd"

// pkg is what go list says about one package.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Standard   bool
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
	Deps       []string
}

// rel is the package's place in the module ("internal/jobs").
func (p pkg) rel() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

// files lists the sources that are built, tests excluded.
func (p pkg) files() []string {
	var out []string
	for _, f := range append(append([]string(nil), p.GoFiles...), p.CgoFiles...) {
		out = append(out, filepath.Join(p.Dir, f))
	}
	return out
}

// forTests says that a package exists to be used by tests (storetest,
// testworker): it may import testing, and nothing that ships may import it.
func forTests(rel string) bool {
	if rel == "internal/sched/simtest" { // the simulator: `cjmd simulate` is made of it
		return false
	}
	base := rel[strings.LastIndex(rel, "/")+1:]
	return strings.HasSuffix(base, "test") || strings.HasPrefix(base, "test") || strings.HasPrefix(rel, "test/")
}

var listOnce = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Doc,Standard,GoFiles,CgoFiles,Imports,Deps", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	var all []pkg
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})

// ours returns the module's packages that have code besides tests.
func ours(t *testing.T) []pkg {
	t.Helper()
	all, err := listOnce()
	if err != nil {
		t.Fatalf("cannot list packages: %v", err)
	}
	var out []pkg
	for _, p := range all {
		if p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/") {
			if len(p.GoFiles)+len(p.CgoFiles) > 0 {
				out = append(out, p)
			}
		}
	}
	if len(out) == 0 {
		t.Fatal("go list found no package of ours")
	}
	return out
}

// committed returns the files that git tracks, relative to the root.
func committed(t *testing.T) (root string, files []string) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		t.Skip("not a git checkout: which files are committed is unknown")
	}
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot list committed files: %v", err)
	}
	for f := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		files = append(files, f)
	}
	return root, files
}
