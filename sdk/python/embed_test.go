package pysdk_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	pysdk "github.com/cjmd/cjmd/sdk/python"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExtract_WritesAnImportableRuntime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, err := pysdk.Extract(dir)
	require.NoError(t, err)
	require.Equal(t, dir, filepath.Dir(path))
	info, err := os.Stat(filepath.Join(path, "cjmworker", "__main__.py"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode().Perm())

	python := findPython(t)
	cmd := exec.CommandContext(t.Context(), python, "-m", "cjmworker")
	cmd.Env = []string{"PYTHONPATH=" + path}
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "CJM_WORKER_FD")
}

func TestExtract_IsIdempotentAndNamedByContent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := pysdk.Extract(dir)
	require.NoError(t, err)
	before, err := os.Stat(first)
	require.NoError(t, err)
	second, err := pysdk.Extract(dir)
	require.NoError(t, err)
	require.Equal(t, first, second)
	after, err := os.Stat(second)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "the directory was written again")
	sum, err := pysdk.Version()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(sum, strings.TrimPrefix(filepath.Base(first), "python-")))
}

func TestExtract_RepairsADamagedCopy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, err := pysdk.Extract(dir)
	require.NoError(t, err)
	broken := filepath.Join(path, "cjmworker", "_frames.py")
	require.NoError(t, os.WriteFile(broken, []byte("raise SystemExit"), 0o600))
	again, err := pysdk.Extract(dir)
	require.NoError(t, err)
	require.Equal(t, path, again)
	data, err := os.ReadFile(broken)
	require.NoError(t, err)
	require.Contains(t, string(data), "class FrameDecoder")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "temporary directories were left behind")
}

func TestExtract_ManyAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { _, errs[i] = pysdk.Extract(dir) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestExtract_UnusableDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := pysdk.Extract(filepath.Join(file, "below"))
	require.ErrorContains(t, err, "cannot make the directory of the Python runtime")
}

// TestPythonSuite runs the unittest suite of the runtime, so that `go test`
// covers both languages.
func TestPythonSuite(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many Python processes")
	}
	if os.Getenv("CJM_PYTHON_SUITE") == "apart" {
		t.Skip("make test runs it after the Go tests")
	}
	python := findPython(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "-m", "unittest", "discover", "-s", "tests", "-t", ".")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "OK")
}

func findPython(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("CJMD_TEST_PYTHON"), "python3"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no python3 on the path")
	return ""
}
